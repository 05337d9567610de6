"""How many CPUs this process may use."""


def num_cpus() -> int:
    """Return the number of CPUs that affinity (taskset, Slurm) and a container's quota leave, at least 1.

    A quota of less than a CPU, or of half a one more, counts as a whole one.
    """
    import joblib

    return max(1, int(joblib.cpu_count()))
