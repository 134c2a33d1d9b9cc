"""Connections to Kafka, by kafka-python."""
