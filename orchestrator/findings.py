"""What a check finds: errors, warnings and notes, and errors as one exception.

Covered: the findings themselves.
Not covered: looking for them (check.py, data_check.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    severity: Literal["error", "warning", "note"]
    kind: Literal["spec", "missing"]
    """Whether the spec is wrong or something that it needs is not there."""
    field: str
    """Dotted path in the spec, or what the finding is about."""
    message: str
    remedy: str = ""


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def from_error(field: str, error: OrchestratorError) -> Finding:
    """The finding that an exception is."""
    kind: Literal["spec", "missing"] = "spec" if isinstance(error, SpecError) else "missing"
    return Finding("error", kind, field, error.message, error.remedy)


def raise_on_errors(findings: Sequence[Finding]) -> None:
    """Raise all errors among the findings as one.

    Raises:
        SpecError: at least one is the spec's fault.
        PrerequisiteError: the spec is right, but things that it needs are missing.
    """
    errors = errors_of(findings)
    if not errors:
        return
    kind = SpecError if any(finding.kind == "spec" for finding in errors) else PrerequisiteError
    if len(errors) == 1:
        raise kind(f"{errors[0].field}: {errors[0].message}", errors[0].remedy)
    lines = [f"  {each.field}: {each.message}" + (f" ({each.remedy})" if each.remedy else "") for each in errors]
    raise kind("\n".join([f"the check found {len(errors)} errors:", *lines]), "correct these, then check again")
