"""Memory that is asked for before it is taken."""

import math
import os

import jax


def refuse_too_large(num_bytes: float, name: str, what: str = "it") -> None:
    """Raises `MemoryError` naming the argument `name` where `what` needs more memory than the device has free."""
    free = available_bytes()
    if num_bytes > free:
        raise MemoryError(
            f"{name} is too large: {what} would take {num_bytes / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
        )


def available_bytes() -> float:
    """Returns the bytes that the first device has free, for a CPU those of the machine; infinity if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min(_free_bytes(), allowed_bytes())


def _free_bytes() -> float:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not on Linux: all that the machine has
        pass
    try:
        pages: int = os.sysconf("SC_PHYS_PAGES")
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf


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
