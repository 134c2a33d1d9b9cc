"""
Benchmarks of the daemon: next to tcpdump, under floods, and with many messages.

C{python -m benchmarks}, as root, runs all short ones, and C{python -m benchmarks NAME} one of them. Each
measures the installed daemon in a process of its own, on a virtual wire of its own, and ends every process
that it started.
"""
