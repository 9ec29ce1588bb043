"""Hugging Face checkpoints in and out: configs, safetensors, and the table of each family."""
