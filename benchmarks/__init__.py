"""Benchmarks: what they are, how their shards are written, and one file for each data set."""
