"""The manhole: a Python console inside the running daemon, reached by SSH. Off by default."""
