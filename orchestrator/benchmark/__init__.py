"""Test sets put to a model: answers, scores, comparisons."""
