"""The whole, against real servers and real packets."""
