"""Delivers captures to their destinations, from memory and from the spool."""
