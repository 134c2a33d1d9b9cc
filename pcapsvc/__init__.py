"""On-demand packet capture: a request names a host and an interface, and the capture is delivered."""

__version__ = "1.0.0"
