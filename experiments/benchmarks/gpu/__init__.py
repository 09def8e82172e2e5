"""One prepared command for a GPU that is at hand for a few minutes: `python -m experiments.benchmarks.gpu`.

Every part runs in processes of its own, which are ended when the part's share of the time is used up. Every row is on
disk as soon as it is measured. The processes run with XLA_PYTHON_CLIENT_PREALLOCATE=false, so that memory can be
measured, and with a persistent compilation cache (JAX_COMPILATION_CACHE_DIR where set).

How memory is measured: `temp_bytes` and `planned_bytes` are XLA's own account of the compiled program, its temporaries
alone and together with arguments and outputs. `peak_copies` is the allocator's peak since the process began; rows of
that process go from little memory to much.
"""
