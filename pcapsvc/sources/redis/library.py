"""
Imports txredisapi without OpenSSL and Automat.

The library (version 1.6) has connections of its own, which aren't made here. For these it imports Twisted's
TLS, and so OpenSSL, which costs 15 MB, and Twisted's C{ClientService}, and so Automat, which costs 0.5 MB and
10 ms. While it is imported, it needs no more than the names of these classes. If a connection is encrypted,
L{pcapsvc.net.redis} does that.
"""

from __future__ import annotations

# The library imports them as well. They keep what they find of Twisted's TLS, which must not be what stands
# for it.
import twisted.internet.endpoints
import twisted.internet.tcp  # noqa: F401

from pcapsvc.lean_import import replaced, with_classes

_SERVICE, _SSL, _TLS = "twisted.application.internet", "twisted.internet.ssl", "twisted.protocols.tls"
with (
    replaced(_SERVICE, with_classes(_SERVICE, "ClientService")),
    replaced(_SSL, with_classes(_SSL, "ClientContextFactory")),
    replaced(_TLS, with_classes(_TLS, "TLSMemoryBIOFactory")),
):
    from txredisapi import ResponseError, SubscriberProtocol

__all__ = ["ResponseError", "SubscriberProtocol"]
