"""C{pcapctl}, the command line client. It imports nothing of the daemon but its core."""
