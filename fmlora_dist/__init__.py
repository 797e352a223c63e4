"""Continual learning of frozen vision transformers: FM-LoRA, its rivals, and an honest comparison of them."""

__version__ = "0.1.0"
