"""Run specs: read, checked, rendered, compared."""
