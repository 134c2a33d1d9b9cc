"""Requests from a Redis channel."""
