"""The tests: of the core, the rooms and the contracts, and of the whole against real peers."""
