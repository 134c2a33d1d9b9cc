"""The HTTP API, its events, and the web page."""
