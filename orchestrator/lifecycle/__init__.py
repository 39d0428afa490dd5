"""Runs and groups: launched, resumed, rerun and stopped, here or by Slurm."""
