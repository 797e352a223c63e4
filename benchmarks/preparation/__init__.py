"""From a data set's published files to shards: sources, splits, and the pipeline of `fmlora prepare`."""
