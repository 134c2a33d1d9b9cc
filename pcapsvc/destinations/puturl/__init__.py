"""Captures to a URL that the request supplies."""
