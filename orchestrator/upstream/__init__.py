"""The LLaMA-Factory that is installed: read, never imported."""
