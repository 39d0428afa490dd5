"""From what ran with LLaMA-Factory as it is to a spec."""
