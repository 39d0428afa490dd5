"""A run beside the one that it repeats: what differs before it starts, its first losses, its scores."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError
from orchestrator.models.model_files import locate_model
from orchestrator.planning.plan import facts_now, run_side, spec_side
from orchestrator.planning.session import Session
from orchestrator.runs.differences import (
    REDUCED,
    Difference,
    Side,
    Verdict,
    by_severity,
    compare_losses,
    compare_scores,
    differences,
    loss_band,
)
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary, Facts, Training
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

log = logging.getLogger("orchestrator")


def drift_from(
    session: Session, past: RunDir, spec: RunSpec, facts: Facts, overrides: Sequence[str]
) -> list[Difference]:
    """All that differs from a past run now; `overrides` are the KEY=VALUE of --set."""
    now = replace(spec_side(session, "now", spec), facts=facts)
    found = differences(run_side(past), now, overrides)
    return by_severity([each for each in found if each.then != each.now])


def log_differences(past: RunDir, found: Sequence[Difference], *, strict: bool) -> None:
    """Log each thing that differs, by its severity.

    Raises PrerequisiteError: strict, and the data or the model are others.
    """
    for each in found:
        log.log(
            logging.INFO if each.severity == "note" else logging.WARNING,
            "differs from %s (%s): %s", past.id, each.severity, each.line(),
        )  # fmt: skip
    if not found:
        log.info("nothing differs from %s: same spec, data, model, versions and commit", past.id)
    errors = [each.line() for each in found if each.severity == "error"]
    if strict and errors:
        raise PrerequisiteError(
            f"data or model differ from those of {past.id}: {'; '.join(errors)}",
            "without --strict the run starts all the same, and its record says what differs",
        )


class RerunComparison:
    """A run that repeats a past one, compared stage by stage."""

    def __init__(self, session: Session, past: RunDir, spec: RunSpec, record: RunRecord) -> None:
        self._session, self._spec, self._facts = session, spec, record.facts
        self._past = past
        self._then = RunRecord.load(past)
        self._drift = drift_from(session, past, spec, record.facts, record.overrides)
        self._band = REDUCED
        with suppress(PrerequisiteError, SpecError):  # the folder went, or is broken: the training itself says so
            if spec.model is not None:
                folder = locate_model(spec.model.name_or_path, session.workspace.root, spec.model.revision)
                self._band = loss_band([load_spec(past.spec), spec], folder)

    def trained(self, training: Training) -> Verdict | None:
        """The verdict on a finished training, logged; None where the past run trained nothing."""
        if self._then.training is None:
            return None
        then, now = self._then.training.logged_losses, training.logged_losses
        verdict = compare_losses(then, now, drift=self._drift, band=self._band)
        level = logging.WARNING if verdict.verdict == "different" else logging.INFO
        log.log(level, "%s: %s", self._past.id, verdict.message)
        weights = self._then.training.weights_sha256, training.weights_sha256
        if None not in weights and self._then.facts.hash_version == self._facts.hash_version:
            same = "the same, to the last bit" if weights[0] == weights[1] else "others"
            log.info("%s: the trained weights are %s", self._past.id, same)
        return verdict

    def changed(self) -> list[str]:
        """What others changed of data, model and versions since the run started, in lines; logged."""
        try:
            now = facts_now(self._session, self._spec)
        except OrchestratorError as error:
            lines = [f"cannot be told any more: {error.message}"]
        else:
            kinds = ("data", "model", "adapter", "template", "version", "machine")
            sides = [Side("", self._spec, facts) for facts in (self._facts, now)]
            found = [each for each in differences(sides[0], sides[1]) if each.kind in kinds]
            lines = [f"({each.severity}) {each.line()}" for each in by_severity(found)]
        for line in lines:
            log.warning("changed while it ran: %s", line)
        return lines

    def scored(self, benchmarks: Sequence[BenchmarkSummary]) -> None:
        """Log the run's scores beside the past ones."""
        for line in compare_scores(self._then.benchmarks, benchmarks):
            log.info("%s: %s", self._past.id, line)
