"""Memory that is asked for before it is taken."""

import jax
import numpy as np


def refuse_too_large(num_bytes: float, name: str) -> None:
    """Raises `MemoryError` naming the argument whose result would not fit into the memory of the device."""
    free = available_bytes()
    if num_bytes > free:
        raise MemoryError(f"{name} is too large: it needs {num_bytes / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free")


def available_bytes() -> float:
    """Returns the bytes that the first device has free, for a CPU those of the machine; infinity if unknown."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
    except OSError:
        return allowed_bytes()
    return min(float(lines["MemAvailable"].split()[0]) * 1024, allowed_bytes())


def allowed_bytes() -> float:
    """Returns the bytes that this process may still take by the limits set for it; infinity without limits."""
    limits = [np.inf]
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
        limits.append(np.inf if soft == resource.RLIM_INFINITY else soft - taken)
    except (ImportError, OSError):  # not on Windows, not on macOS
        pass
    return min(limits)
