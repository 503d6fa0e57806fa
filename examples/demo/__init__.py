"""Tens of thousands of Kafka records, two workers, one killed, and a proof at the end: `make demo`."""
