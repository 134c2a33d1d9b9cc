"""Events to a Kafka topic."""
