"""Hypergradients of other libraries beside ours: time, memory, first call and accuracy on the same problems."""
