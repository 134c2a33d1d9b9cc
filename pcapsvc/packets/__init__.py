"""Packets from the operating system."""
