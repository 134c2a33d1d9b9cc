"""Events to a Redis channel."""
