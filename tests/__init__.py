"""Tests of the core, the packages and the contracts, and of the whole daemon against real servers."""

from tests.unit.event_schema import check_every_event

# Whatever a test is about, the events that it causes are valid.
check_every_event()
