"""
The real things that tests talk to: servers of their own processes, and a wire.

Each peer is a small class with C{start} and C{stop}, on a free loopback port
and in a temporary folder of its own. It ends only what it started, by its pid,
also when a test forgets to, and when the test runner dies. All of them block,
briefly: call them from a test's set-up, or from a thread.
"""
