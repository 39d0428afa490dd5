"""Commands that benchmark a model, trained here or not, and that compare benchmarks."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from orchestrator.benchmark.compare import compare as compare_benchmarks
from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.benchmark.results import find_benchmarks, has_result
from orchestrator.benchmark.run import add_comet
from orchestrator.benchmark.selection import SelectionOptions, select_checkpoint
from orchestrator.commands import options
from orchestrator.commands.options import app, open_target, say, serve_settings
from orchestrator.data.datasets import Dataset, load_entry
from orchestrator.data.testset import SPLIT, entry_of_files
from orchestrator.errors import Interrupted, SpecError, did_you_mean
from orchestrator.files import expanded
from orchestrator.lifecycle import benchmark_target as targets
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir, find_workspace
from orchestrator.serving.target import every_checkpoint
from orchestrator.specs.benchmark_spec import METRICS, BenchmarkSpec
from orchestrator.views.terminal import comparison_text, curve_parts, score_tables, show


@app.command(epilog="Example: orchestrator benchmark demo@base --testset captions_en_de --max-samples 20")
def benchmark(
    target: options.TargetName,
    testset: Annotated[str | None, Option(help="Dataset, or sacrebleu:SET/PAIR. Default: the run's own.")] = None,
    split: Annotated[str | None, Option(help="Default: test; of RUN@all: validation.")] = None,
    max_samples: Annotated[int | None, Option(min=1, help="Only the first N sentences.")] = None,
    sample_seed: Annotated[int | None, Option(min=0, help="Draw --max-samples sentences with this seed.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Longest answer, in tokens.")] = None,
    concurrency: Annotated[int | None, Option(min=1, help="Requests at once. Default: what suits the server.")] = None,
    metrics: Annotated[str | None, Option(metavar="NAME,...", help="Of bleu, chrf, chrf++, ter. Default: all.")] = None,
    source: Annotated[Path | None, Option(help="Text file to translate, with --reference; no --testset.")] = None,
    reference: Annotated[Path | None, Option(help="Translation of --source, line by line.")] = None,
    source_lang: Annotated[str | None, Option(help="Language of --source. Default: its ending, as in test.en.")] = None,
    target_lang: Annotated[str | None, Option(help="Language of --reference. Default: its ending.")] = None,
    instruction: Annotated[str | None, Option(help="Instruction to the model. Default: as in training.")] = None,
    comet: Annotated[str | None, Option(metavar="MODEL", help="COMET too; TARGET may be a finished benchmark.")] = None,
    metric: Annotated[str | None, Option(help="RUN@all: choose by bleu, chrf, chrf++ or ter. Default: bleu.")] = None,
    base: Annotated[bool, Option("--base", help="RUN@all: also the model before training.")] = False,
    watch: Annotated[bool, Option("--watch", help="RUN@all: also new checkpoints, until the run ends.")] = False,
    fresh: Annotated[bool, Option("--fresh", help="Request every sentence again; use no earlier answer.")] = False,
    allow_incomplete: Annotated[bool, Option("--allow-incomplete", help="Score the answers that came.")] = False,
    template: options.Template = None,
    backend: options.Backend = None,
    merge: options.Merge = None,
    devices: options.Devices = None,
    port: options.Port = None,
    model_name: options.ModelName = None,
    workspace: options.Workspace = None,
    archives: options.Archives = None,
    as_json: options.Json = False,
) -> None:
    """Translate a test set with a model and score it: BLEU, chrF2, TER with signatures and intervals.

    RUN@all benchmarks every checkpoint on the validation set, chooses the best, names the earliest that cannot be told
    from it, and benchmarks the chosen one on the test sets of the run's spec.
    """
    session = Session.open(workspace, archives)
    if comet is not None and comet.endswith(".ckpt"):
        comet = str(expanded(comet).absolute())
    if has_result(Path(target)):
        if comet is None or testset or source or fresh:
            raise SpecError(f"{target} is a finished benchmark: only COMET's score can be added to it", "--comet MODEL")
        add_comet(Path(target).resolve(), comet, session.workspace.root, devices)
        _show([Path(target).resolve()], as_json)
        return
    every = every_checkpoint(target, session.workspace)
    if every is None and (metric is not None or base or watch):
        raise SpecError("--metric, --base and --watch are for RUN@all")
    if every is not None and template is not None:
        raise SpecError("--template is for a model of no run of ours", "leave it out: the run's is taken")
    found = every or open_target(session, target, template)
    if source is not None or reference is not None:
        if source is None or reference is None or testset is not None:
            raise SpecError("--source and --reference go together, and without --testset")
        own = [load_entry(name, session.dataset_folders) for name in (found.spec.datasets if found.spec else [])]
        like = next((each.entry for each in own if isinstance(each, Dataset)), None)
        languages = [code and code.strip().replace("_", "-").lower() for code in (source_lang, target_lang)]  # zh-cn
        if wrong := [code for code in languages if code and not re.fullmatch("[a-z]{2,3}(-[a-z0-9]+)*", code)]:
            raise SpecError(f"{wrong[0]!r} is no language code", "such as --source-lang en --target-lang pt-br")
        codes = dict(zip(("source_lang", "target_lang"), languages, strict=True))
        testset, folder = entry_of_files(source, reference, like, **codes, instruction=instruction)
        session = replace(session, dataset_folders=[*session.dataset_folders, folder])
        split, instruction = SPLIT, None  # the instruction is the pair's
    given: dict[str, Any] = dict(instruction=instruction, max_samples=max_samples, sample_seed=sample_seed)
    given |= dict(max_tokens=max_tokens, concurrency=concurrency, metrics=_metrics(metrics), comet=comet)
    given = {key: value for key, value in given.items() if value is not None}
    settings = serve_settings(found, devices=devices, port=port, model_name=model_name, backend=backend, merge=merge)
    evaluation = EvalOptions(fresh=fresh, allow_incomplete=allow_incomplete)
    try:
        if found is every and found.run is not None and found.spec is not None:
            how = SelectionOptions(testset, split or "validation", given, metric or "bleu", base, watch)
            curve = select_checkpoint(session, found.run, found.spec, how, settings, evaluation)
            show(curve.model_dump(mode="json"), *curve_parts(curve), as_json=as_json)
            say(f"the curve: {found.run.curve}")
            return
        given |= {} if split is None else {"split": split}
        if testset is not None:
            items = [BenchmarkSpec.model_validate({"testset": testset, **given})]
        else:
            items = [item.model_copy(update=given) for item in (found.spec.benchmark if found.spec else [])]
        folders = targets.benchmark(session, found, items, settings, evaluation)
    except Interrupted as error:
        same = "the same command without --fresh" if fresh else "the same command"
        raise Interrupted(str(error), error.remedy or f"{same} continues with the sentences that are left") from error
    _show(folders, as_json)


@app.command(epilog="Example: orchestrator compare demo@base demo")
def compare(
    systems: Annotated[list[str], Argument(metavar="A B...", help="Runs, RUN@LABEL, folders, groups; first: baseline")],
    testset: Annotated[str | None, Option(metavar="NAME[:SPLIT]", help="Default: the newest that all have.")] = None,
    metric: Annotated[list[str] | None, Option(help="bleu, chrf, chrf++, ter; repeatable. Default: all.")] = None,
    examples: Annotated[int, Option(min=0, help="Sentences shown where each wins.")] = 3,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Which is better, by how much, and can this test set tell? Paired tests of benchmarks, each with the first."""
    found = find_benchmarks(systems, find_workspace(workspace), testset)
    comparison = compare_benchmarks(found, metric or (), n_examples=examples)
    show(comparison.model_dump(mode="json"), comparison_text(comparison), as_json=as_json)


def _metrics(names: str | None) -> list[str] | None:
    chosen = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in chosen:
        if name not in METRICS:
            raise SpecError(f"no metric {name!r}{did_you_mean(name, METRICS)}", f"the metrics: {', '.join(METRICS)}")
    return chosen or None


def _show(folders: list[Path], as_json: bool) -> None:
    documents = [json.loads((folder / "scores.json").read_bytes()) for folder in folders]
    record = RunRecord.load(RunDir(folders[0].parent.parent))
    names = {folder.name for folder in folders}
    show(documents, "", score_tables([item for item in record.benchmarks if item.id in names]), as_json=as_json)
    say("\n".join(f"every sentence: {folder / 'hypotheses.jsonl'}" for folder in folders))
