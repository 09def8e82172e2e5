"""What everything else stands on: pytrees, checkpoints, versions of JAX."""
