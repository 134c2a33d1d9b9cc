"""On-demand packet capture: a request names a host, and the packets arrive where they are wanted."""

__version__ = "1.0.0"
