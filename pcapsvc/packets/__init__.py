"""The operating system's packets, by libpcap."""
