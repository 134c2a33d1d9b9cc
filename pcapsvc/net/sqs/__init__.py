"""Clients of Amazon SQS, by boto3."""
