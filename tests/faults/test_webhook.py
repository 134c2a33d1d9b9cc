"""
Webhooks in trouble: what was captured is posted until it has arrived, or stays in the spool until it is. Each
attempt has the same key and the same body, so a receiver recognizes the second.
"""

from __future__ import annotations

from tests.faults.webhook_case import WebhookCase, WebhookFaults


class WebhookTests(WebhookFaults, WebhookCase):
    """A webhook that is sent captures."""
