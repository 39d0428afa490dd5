"""Moved to specs/schema.py (schema_text: to new_spec.py); this module goes when its importers have followed."""

from orchestrator.specs.schema import modeline as modeline
