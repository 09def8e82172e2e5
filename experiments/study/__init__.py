"""Greedy, DrMAD, HOAG and random search, after Bakhteev and Strijov (2020)."""
