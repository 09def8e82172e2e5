"""Penalties of sparse models by hypergradients through proximal steps, against grid and random search."""
