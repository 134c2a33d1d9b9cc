"""Tests of the core, the packages and the contracts, and of the whole daemon against real servers."""

from hypothesis import settings

from tests.unit.event_schema import check_every_event

# Examples have no time limit, which they would exceed on a busy machine.
settings.register_profile("pcapsvc", settings(), deadline=None)
settings.load_profile("pcapsvc")

# Whatever a test is about, the events that it causes are valid.
check_every_event()
