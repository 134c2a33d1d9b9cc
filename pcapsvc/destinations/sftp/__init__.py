"""Captures to a server of files, over SSH."""
