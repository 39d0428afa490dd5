"""A past run, run again, here or in another workspace: what differs before it starts, its losses and scores after."""

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.data.datasets import list_entries
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import expanded
from orchestrator.lifecycle.new_run import Provenance
from orchestrator.models.model_files import locate_model
from orchestrator.planning.plan import Plan, plan_run, run_side, spec_side
from orchestrator.planning.session import Session
from orchestrator.runs.differences import Difference, by_severity, compare_losses, differences, loss_band
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

log = logging.getLogger("orchestrator")


def saved_run(selector: str, workspace: Workspace | None) -> RunDir | Path:
    """The run that a selector means, or the spec.yaml that has no record beside it; paths need no workspace.

    Raises SpecError: there is neither.
    """
    is_path = "/" in selector or selector.endswith((".yaml", ".yml"))  # else a spec's name would mean what lies here
    if is_path:
        path = Path(selector)
        spec = path / "spec.yaml" if path.is_dir() else path
        if spec.is_file():
            beside = RunDir(spec.parent.resolve())
            return beside if spec.name == "spec.yaml" and beside.record.is_file() else spec
    if workspace is None:
        raise SpecError(f"no run folder and no spec.yaml {selector!r}", "name one by its path; or --workspace DIR")
    return workspace.find_run(selector)


def plan_rerun(
    session: Session, past: RunDir | Path, overrides: Sequence[str], *, strict: bool
) -> tuple[Plan, Provenance]:
    """What would run a past run's saved spec again; what differs now is logged.

    Entries of datasets that only the past run's own workspace has are copied, without files beside them; on an error
    none. Raises SpecError: the check; PrerequisiteError: strict, and data or model differ.
    """
    file, folder = (past.spec, past.path) if isinstance(past, RunDir) else (past, past.resolve().parent)
    spec, old = session.load_spec(file), folder.parent.parent
    names: list[str] = []
    if (old / "dataset_info").is_dir() and old != session.workspace.root:
        overrides = [*_old_models(spec, old, session.workspace.root), *overrides]
        used = dict.fromkeys([*spec.datasets, *spec.eval_datasets, *(item.testset for item in spec.benchmark)])
        known, there = list_entries(session.dataset_folders), list_entries([old / "dataset_info"])
        names = [name for name in used if name not in known and name in there]
    copies = [session.workspace.dataset_info / f"{name}.yaml" for name in names]
    try:
        for copy in copies:
            shutil.copy2(old / "dataset_info" / copy.name, copy, follow_symlinks=False)
            log.info("the entry of dataset %s is copied from %s", copy.stem, old)
        plan = plan_run(session, session.load_spec(file, overrides), ask=True)
        if not isinstance(past, RunDir):
            log.warning("%s has no record beside it: there is nothing to compare with", past)
            return plan, Provenance(str(past), overrides)
        found = drift_from(session, past, plan.spec, plan.facts, overrides)
        log_differences(past, found, strict=strict)
    except BaseException:  # Ctrl-C too
        for copy in copies:
            copy.unlink(missing_ok=True)
        raise
    name = past.id if past.path.parent == session.workspace.runs else str(past.path)
    return plan, Provenance(str(past.spec), overrides, name, [each.line() for each in found])


def drift_from(
    session: Session, past: RunDir, spec: RunSpec, facts: Facts, overrides: Sequence[str]
) -> list[Difference]:
    """All that differs from a past run now; `overrides` are the KEY=VALUE of --set."""
    now = replace(spec_side(session, "now", spec), facts=facts)
    found = differences(run_side(past), now, overrides)
    return by_severity([each for each in found if each.then != each.now])


def log_differences(past: RunDir, found: Sequence[Difference], *, strict: bool) -> None:
    """Log each thing that differs; PrerequisiteError where it is strict, and the data or the model are others."""
    for each in found:
        level = logging.INFO if each.severity == "note" else logging.WARNING
        log.log(level, "differs from %s (%s): %s", past.id, each.severity, each.line())
    if not found:
        log.info("nothing differs from %s: same spec, data, model, versions and commit", past.id)
    errors = [each.line() for each in found if each.severity == "error"]
    if strict and errors:
        raise PrerequisiteError(
            f"data or model differ from those of {past.id}: {'; '.join(errors)}",
            "without --strict the run starts all the same, and its record says what differs",
        )


def compare_trainings(session: Session, past: RunDir, spec: RunSpec, record: RunRecord) -> str | None:
    """Log whether a finished training came to the same as that of the run that it repeats; the verdict, in a line.

    None where one of them has no results here.
    """
    before, folder = RunRecord.load(past), None
    then, now = before.training, record.training
    if then is None or now is None or spec.model is None:
        return None
    with suppress(PrerequisiteError, SpecError):  # it is gone
        folder = locate_model(spec.model.name_or_path, session.workspace.root, spec.model.revision)
    band = loss_band([load_spec(past.spec), spec], folder)
    drift = drift_from(session, past, spec, record.facts, record.overrides)
    verdict = compare_losses(then.logged_losses, now.logged_losses, drift=drift, band=band)
    level = logging.WARNING if verdict.verdict == "different" else logging.INFO
    log.log(level, "%s: %s", past.id, verdict.message)
    weights = then.weights_sha256, now.weights_sha256
    if None not in weights and before.facts.hash_version == record.facts.hash_version:
        same = "the same, to the last bit" if weights[0] == weights[1] else "others"
        log.info("%s: the trained weights are %s", past.id, same)
    return f"{verdict.verdict}: {verdict.message}"


def _old_models(spec: RunSpec, old: Path, new: Path) -> list[str]:
    overrides = []
    for key in ("name_or_path", "adapter_name_or_path"):
        given = getattr(spec.model, key, None)
        if given is not None and not (new / expanded(given)).is_dir() and (found := old / expanded(given)).is_dir():
            log.info("model.%s is the old workspace's: %s", key, found)
            overrides.append(f"model.{key}={json.dumps(str(found))}")
    return overrides
