"""Hyperparameters learned during one training run."""
