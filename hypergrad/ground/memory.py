"""Memory asked for before it is taken: what cannot fit is refused with the number."""

import math
import os

import jax


def device_memory() -> float:
    """Returns the bytes of memory that arrays can have here, infinity where the system does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        physical: float = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        physical = math.inf
    return min(physical, allowed_bytes())


def allowed_bytes() -> float:
    """Returns the bytes that this process may still take by the limits set for it; infinity without limits."""
    limits = [math.inf]
    try:
        with open("/sys/fs/cgroup/memory.max") as most, open("/sys/fs/cgroup/memory.current") as used:
            limits.append(float(most.read()) - float(used.read()))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        limits.append(math.inf if soft == resource.RLIM_INFINITY else soft - taken)
    except (ImportError, OSError):  # not on Windows, not on macOS
        pass
    return min(limits)


def refuse_too_large(num_bytes: float, name: str, what: str) -> None:
    """Raises `MemoryError` naming the argument `name` where `what` needs more memory than there is."""
    if num_bytes > (there := device_memory()):
        raise MemoryError(
            f"{name} is too large: {what} would take {num_bytes / 1e9:,.1f} GB, and {there / 1e9:,.1f} GB are there"
        )
