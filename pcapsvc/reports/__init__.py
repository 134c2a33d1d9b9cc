"""Reporters: what receives the events."""
