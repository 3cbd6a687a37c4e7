"""Checkpoints that others made or can read: names of weights, configurations, the hub, other sizes."""
