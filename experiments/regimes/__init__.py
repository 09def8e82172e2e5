"""Which estimator reaches the hypergradient at what cost, on one small problem for every regime of training."""
