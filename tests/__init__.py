"""The tests: of the core, the rooms and the contracts, and of the whole against real peers."""

from hypothesis import settings

# No example has a time: a busy machine would fail it.
settings.register_profile("pcapsvc", settings(), deadline=None)
settings.load_profile("pcapsvc")
