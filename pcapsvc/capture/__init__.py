"""Captures packets: from a plan to a recording."""
