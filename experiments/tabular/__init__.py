"""Tabular data: what tuning during training is worth, from good and bad starts."""
