"""The commands of `fmlora`, one file for each kind. What they need is imported when they are called."""
