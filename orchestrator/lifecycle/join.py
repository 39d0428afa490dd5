"""A machine that takes part in an elastic training that another one has begun: torchrun lets it in at any time.

LLaMA-Factory goes on from the newest checkpoint in its output_dir whenever torchrun starts it again, so all machines of
such a training need one output_dir, on a file system that all of them see: output/ of the run that began it.
Covered: what may be joined, and with which spec.
Not covered: how the machines meet, and which of them has rank 0 (torchrun).
"""

from dataclasses import replace

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.lifecycle.new_run import Origin
from orchestrator.lifecycle.resume import heed_changes
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.nodes import this_machine
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir


def plan_join(session: Session, run: RunDir) -> tuple[Plan, Origin]:
    """What this machine would do as one of a run's: the same training, and no benchmark, which is the run's own.

    Args:
        session: the workspace and its tools.
        run: the run; one that joined another stands for that.

    Raises:
        SpecError: its training is not elastic.
        PrerequisiteError: it does not train now; or data or model are not the same here.
    """
    record = RunRecord.load(run)
    if record.joins is not None:
        return plan_join(session, session.workspace.find_run(record.joins))
    spec = session.load_spec(run.spec)
    if spec.train is None or spec.compute.rdzv_id is None or this_machine(spec.compute, {}) is None:
        raise SpecError(
            f"the training of {run.id} is not elastic: no machine can join it",
            "launch one with compute: {rdzv_id: NAME, min_nnodes: 1, max_nnodes: 2, max_restarts: 3, "
            "nproc_per_node: ..., master_addr: ..., master_port: ...}",
        )
    if spec.train.arguments().get("save_on_each_node") is True:
        raise SpecError(
            f"{run.id} was launched with train.save_on_each_node: two machines would write the same files",
            "launch it without",
        )
    if not record.is_active() or record.status not in ("preparing", "running"):
        raise PrerequisiteError(
            f"run {run.id} does not train now: it is {record.status}", f"orchestrator show {run.id}"
        )
    plan = plan_run(session, spec)
    heed_changes(run, record, plan.spec, plan.facts)
    # a name of its own: toy stays the run that has the results
    part = plan.spec.model_copy(update={"name": f"{spec.name[:59]}-part", "benchmark": []})
    return replace(plan, spec=part), Origin(str(run.spec), joins=run.id)
