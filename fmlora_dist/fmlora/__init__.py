"""FM-LoRA (arXiv 2504.08823): F-LoRA, DRS and DMP."""
