"""What `capfilt evaluate` does: measure a model on pairs it has not seen, and simpler means beside it."""
