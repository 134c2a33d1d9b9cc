"""Requests from an Amazon SQS queue."""
