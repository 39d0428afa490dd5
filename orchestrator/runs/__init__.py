"""Run folders: what ran, how it goes on, and where it is found again."""
