"""One file a method: the rivals of FM-LoRA and the bounds."""
