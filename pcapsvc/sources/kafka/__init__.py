"""Requests from a Kafka topic."""
