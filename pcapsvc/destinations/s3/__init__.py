"""Captures to Amazon S3, and to what speaks as it does."""

from pcapsvc.destinations.s3.destination import S3, metadata_value

__all__ = ["S3", "metadata_value"]
