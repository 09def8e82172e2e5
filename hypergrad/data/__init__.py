"""Data for losses: whole, in minibatches, or as a stream."""
