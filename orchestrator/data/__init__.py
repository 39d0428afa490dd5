"""Datasets: entries, texts, records, test sets."""
