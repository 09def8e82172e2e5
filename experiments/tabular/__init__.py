"""Tabular data: the worth of tuning during training, from good and bad starts."""
