"""Accuracy and cost of every estimator on one small problem for each regime of training."""
