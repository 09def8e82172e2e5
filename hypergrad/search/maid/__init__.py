"""MAID, with the error bounds it goes by."""
