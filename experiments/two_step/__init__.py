"""Search on a little data, retrain the best on all of it: aerosol activation."""
