"""Many runs at once, placed by Ray Tune. It adds scheduling and nothing else."""
