"""
The real peers that tests and benchmarks talk to: servers in processes of their own, and virtual links.

Each peer is a small class with C{start} and C{stop}. It has a free port on loopback and a temporary directory
of its own, and ends only the processes that it started, by their ids, even if a test forgets to stop it or
the test runner dies. The methods block, briefly: call them in a test's C{setUp}, or in a thread.
"""
