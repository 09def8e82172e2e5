"""Memory asked for before it is taken: what cannot fit is refused with the number."""

import os

import jax


def device_memory() -> int | None:
    """Returns the bytes of memory that arrays can have here, `None` where the system does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def refuse_too_large(num_bytes: int, name: str, what: str) -> None:
    """Raises `MemoryError` naming the argument `name` where `what` needs more memory than there is."""
    there = device_memory()
    if there is not None and num_bytes > there:
        raise MemoryError(
            f"{name} is too large: {what} would take {num_bytes / 1e9:,.1f} GB, and {there / 1e9:,.1f} GB are there"
        )
