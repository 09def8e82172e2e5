"""The ground that everything else stands on: pytrees, checkpoints, versions of JAX."""
