"""Captures, or events about them, to an HTTP endpoint."""
