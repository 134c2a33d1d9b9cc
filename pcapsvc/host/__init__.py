"""The host that the daemon runs on: systemd, signals, descriptors, syslog, permissions, and the manhole."""
