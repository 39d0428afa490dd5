"""What a user can act on, with the exit code of each kind.

    OrchestratorError        __main__ prints message and remedy, no traceback
      SpecError          2   the spec or the command line is wrong; all problems at once
      PrerequisiteError  3   a program, file, GPU, server or free port is missing
      StageError         4   a stage failed; the message holds the log's last lines
    Interrupted        130   Ctrl-C, SIGTERM or SIGHUP, after the children were stopped

Anything else that reaches the command line is a bug: a traceback and exit 1.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


class _WithRemedy(BaseException):
    """`message` says what happened, `remedy` what to do now."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class OrchestratorError(_WithRemedy, Exception):
    """An error with a next step."""


class SpecError(OrchestratorError):
    """The spec, a dataset entry or the command line is wrong."""

    exit_code = 2


class PrerequisiteError(OrchestratorError):
    """Something that the work needs is missing or in use."""

    exit_code = 3


class StageError(OrchestratorError):
    """A stage ran and failed."""

    exit_code = 4


class Interrupted(_WithRemedy, BaseException):
    """A signal stopped us, in order. No Exception: it is raised anywhere, and a library's `except` would swallow it."""

    exit_code = 130


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """'; did you mean ...?' with the nearest of the options, or '' where none is near."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    severity: Literal["error", "warning", "note"]
    kind: Literal["spec", "missing"]  # whether the spec is wrong, or something that it needs is missing
    field: str  # dotted path in the spec, or what the finding is about
    message: str
    remedy: str = ""


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def from_error(field: str, error: OrchestratorError) -> Finding:
    kind: Literal["spec", "missing"] = "spec" if isinstance(error, SpecError) else "missing"
    return Finding("error", kind, field, error.message, error.remedy)


def raise_on_errors(findings: Sequence[Finding]) -> None:
    """Raise all errors among the findings as one: SpecError, or PrerequisiteError where the spec itself is right."""
    errors = errors_of(findings)
    if not errors:
        return
    kind = SpecError if any(finding.kind == "spec" for finding in errors) else PrerequisiteError
    if len(errors) == 1:
        raise kind(f"{errors[0].field}: {errors[0].message}", errors[0].remedy)
    lines = [f"  {each.field}: {each.message}" + (f" ({each.remedy})" if each.remedy else "") for each in errors]
    raise kind("\n".join([f"the check found {len(errors)} errors:", *lines]), "correct these, then check again")
