"""What the suite costs, measured against what else does the same: `fmlora profile`."""
