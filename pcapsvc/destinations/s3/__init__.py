"""Captures to Amazon S3, and to services that speak its protocol."""
