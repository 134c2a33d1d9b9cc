"""Events to an SQS queue."""
