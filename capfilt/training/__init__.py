"""Training: batches of clean pairs, the objectives of a step, one loop for every model."""
