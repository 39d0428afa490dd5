"""Scores, paired tests and diagnostics of translations. Pure: no files, no network."""
