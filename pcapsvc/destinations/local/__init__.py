"""Captures in a directory of this host."""
