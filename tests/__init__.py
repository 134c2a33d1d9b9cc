"""Tests of the core, the packages and the contracts, and of the whole daemon against real servers."""

from hypothesis import settings

# Examples have no time limit, which they would exceed on a busy machine.
settings.register_profile("pcapsvc", settings(), deadline=None)
settings.load_profile("pcapsvc")
