"""The network protocols that more than one component speaks: TLS trust, HTTP clients and servers."""
