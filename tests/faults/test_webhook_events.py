"""Webhooks that are sent events only, in trouble: each event arrives, and is the same each time."""

from __future__ import annotations

import json

from tests.faults.webhook_case import WebhookCase, WebhookFaults


class WebhookEventTests(WebhookFaults, WebhookCase):
    """A webhook that is sent events."""

    sends_captures = False
    # For an event of some hundred bytes.
    slow_bytes_per_second = 50
    # It needs none for the capture.
    descriptors = 1

    def files(self) -> dict[str, bytes]:
        """By the node in the name of the file: the capture, if the event says what it is."""
        found = {}
        for path, body in self.server.files().items():
            event = json.loads(body)
            node = event["data"]["file"].partition("-")[0]
            key = f"{event['subject']}-webhook"
            self.assertEqual(
                (path, event["id"], event["type"]), (f"/hook/{key}", key, "pcapsvc.capture.file")
            )
            found[node] = self.data if event["data"]["bytes"] == len(self.data) else body
        return found
