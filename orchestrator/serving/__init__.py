"""Servers of checkpoints, servers of others, and what a TARGET means."""
