"""Moved to specs/spec_file.py; this module goes when its importers have followed."""

from orchestrator.specs.spec_file import load_spec as load_spec
