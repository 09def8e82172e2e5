"""Evolution strategies: hypergradients of the outer loss smoothed over a chosen range."""
