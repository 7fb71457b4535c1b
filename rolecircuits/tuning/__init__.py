"""A controlled tuning study: train, measure behaviour, probe."""
