"""The tests: of the core, of each room, of the contracts, and of the whole against real servers and real packets."""
