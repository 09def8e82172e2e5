"""Costs of the library, compared with the same recursions written by hand."""
