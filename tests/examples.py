"""
Hypothesis, as the tests use it. Import it from here: it takes a quarter of a second to import, which most
processes of the tests do without.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings, strategies

__all__ = ["HealthCheck", "given", "settings", "strategies"]

# Examples have no time limit, which they would exceed on a busy machine.
settings.register_profile("pcapsvc", settings(), deadline=None)
settings.load_profile("pcapsvc")
