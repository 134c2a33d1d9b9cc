"""
How the daemon fares beside tcpdump, under floods and with many messages.

C{python -m benchmarks} runs all that take no long time as root, and C{python -m benchmarks NAME}
one. Each measures the daemon as it is installed, in a process of its own, on a
wire of its own, and ends whatever it started.
"""
