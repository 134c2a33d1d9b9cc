"""Brings captures to their destinations, and does not give up."""
