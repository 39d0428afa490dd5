"""A thin layer over LLaMA-Factory: a run spec in, a run that can be repeated and a score that can be defended out."""

__version__ = "0.1.0"
