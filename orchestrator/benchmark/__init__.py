"""Benchmarks: translations of a served model, scored, compared, and a checkpoint selected by them."""
