"""Searches that move weights, auxiliary variable and hyperparameters at once."""
