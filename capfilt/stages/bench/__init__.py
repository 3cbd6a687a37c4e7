"""What `capfilt bench` does: time the parts of the one pass on the machine, models and shards of the user."""
