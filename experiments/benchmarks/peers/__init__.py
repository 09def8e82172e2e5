"""Hypergradients of other libraries compared with ours: time, memory, first call and accuracy on the same problems."""
