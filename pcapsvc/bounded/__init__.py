"""Limits of what client libraries read, for the daemon and pcapctl alike."""
