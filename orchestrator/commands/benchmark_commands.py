"""The command that benchmarks a model, trained here or not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import (
    BackendOption,
    DevicesOption,
    FromOption,
    JsonOption,
    MergeOption,
    ModelNameOption,
    PortOption,
    TemplateOption,
    WorkspaceOption,
    open_session,
    open_target,
    say,
    serve_settings,
    with_files,
)
from orchestrator.errors import Interrupted, SpecError, did_you_mean
from orchestrator.files import expanded

if TYPE_CHECKING:
    from orchestrator.benchmark.selection import Curve

# The modules of the stages are imported within the command: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator benchmark demo@base --testset captions_en_de --max-samples 20")
def benchmark(
    target: Annotated[
        str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, RUN@all, a folder, hub id, URL, or spec.")
    ],
    testset: Annotated[
        str | None,
        typer.Option(help="A dataset, or a set in sacrebleu's cache: sacrebleu:wmt14. Default: the run's benchmarks."),
    ] = None,
    langpair: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Of a set of sacrebleu's: en-de, or say sacrebleu:wmt14/en-de.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split. Default: test; of RUN@all: validation.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N sentences.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests under way at once. Default: what suits the backend.")
    ] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the --max-samples sentences with this seed.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Of bleu, chrf, chrf++ and ter. Default: all.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="A text file to translate, instead of --testset; with --reference.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Its translation, line by line.")] = None,
    source_lang: Annotated[
        str | None, typer.Option(help="Language code of --source. Default: its ending, as in test.en.")
    ] = None,
    target_lang: Annotated[str | None, typer.Option(help="Language code of --reference, likewise.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="The model's instruction. Default: as it was trained.")
    ] = None,
    comet: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Score by COMET too, such as Unbabel/wmt22-comet-da; TARGET may be a finished benchmark's folder.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What RUN@all chooses a checkpoint by: bleu, chrf, ter. Default: bleu.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="RUN@all: the model before training too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="RUN@all: go on with new checkpoints until the run has ended.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Request every sentence anew, whatever was answered before.")
    ] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Score what was answered, where some sentences were not.")
    ] = False,
    template: TemplateOption = None,
    backend: BackendOption = None,
    merge: MergeOption = None,
    devices: DevicesOption = None,
    port: PortOption = None,
    model_name: ModelNameOption = None,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Translate a test set with a model and score it: BLEU, chrF2, TER with signatures and intervals.

    RUN@all: every checkpoint on the validation set; the best is chosen, the earliest that cannot be told from it is
    named beside it, and the chosen one alone is benchmarked on the test sets of the run's spec.
    """
    from orchestrator.benchmark.evaluate import EvalOptions
    from orchestrator.benchmark.results import has_result
    from orchestrator.benchmark.selection import SelectionOptions, select_checkpoint
    from orchestrator.data.testset import SPLIT, FilePair, is_sacrebleu
    from orchestrator.lifecycle import benchmark_target as targets
    from orchestrator.serving.target import every_checkpoint_of, every_checkpoint_target
    from orchestrator.specs.benchmark_spec import BenchmarkSpec

    session = open_session(workspace, archives)
    if comet is not None and comet.endswith(".ckpt"):
        comet = str(expanded(comet).absolute())
    if has_result(Path(target)):
        if comet is None or testset or source or fresh:
            what = f"{target} is a finished benchmark: what it requested stands, and only COMET's score can be added"
            raise SpecError(what, "--comet MODEL, and no test set; orchestrator compare takes it too")
        folder = Path(target).resolve()
        targets.add_comet_to(session, folder, comet, devices)
        _show([folder], as_json)
        return
    run = every_checkpoint_of(target, session.workspace)
    if run is None and (metric is not None or base or watch):
        raise SpecError("--metric, --base and --watch are for RUN@all")
    if run is not None and template is not None:
        raise SpecError("--template is for a model of no run of ours", "leave it out: the run's is taken")
    found = open_target(session, target, template) if run is None else every_checkpoint_target(run)
    if source is not None or reference is not None:
        if source is None or reference is None or testset is not None:
            raise SpecError("--source and --reference go together, and without --testset")
        pair = FilePair(source, reference, _language_tag(source_lang), _language_tag(target_lang), instruction)
        session, testset = with_files(session, found, pair)
        split, instruction = SPLIT, None  # the instruction is the pair's
    if langpair is not None:
        if testset is None or not is_sacrebleu(testset):
            raise SpecError("--langpair is for a set of sacrebleu's", "--testset sacrebleu:wmt14 --langpair en-de")
        testset = f"{testset}/{langpair}"
    changes = {
        "instruction": instruction,
        "max_samples": max_samples,
        "sample_seed": sample_seed,
        "max_tokens": max_tokens,
        "concurrency": concurrency,
        "metrics": _metrics(metrics),
        "comet": comet,
    }
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    settings = serve_settings(found, devices, port, model_name, backend, merge)
    options = EvalOptions(fresh=fresh, allow_incomplete=allow_incomplete)
    if run is not None and found.spec is not None:
        how = SelectionOptions(testset, split or "validation", given, metric or "bleu", base, watch)
        with _nothing_is_lost(fresh):
            curve = select_checkpoint(session, run, found.spec, how, settings, options)
        _show_curve(curve, run.curve, as_json)
        return
    given |= {} if split is None else {"split": split}
    if testset is not None:
        items = [BenchmarkSpec.model_validate({"testset": testset, **given})]
    else:
        items = [item.model_copy(update=given) for item in (found.spec.benchmark if found.spec else [])]
    with _nothing_is_lost(fresh):
        folders = targets.benchmark(session, found, items, settings, options)
    _show(folders, as_json)


def _metrics(names: str | None) -> list[str] | None:
    from orchestrator.specs.benchmark_spec import METRICS

    chosen = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen or []:
        if name not in METRICS:
            raise SpecError(f"no metric {name!r}{did_you_mean(name, METRICS)}", f"the metrics: {', '.join(METRICS)}")
    return chosen or None


def _language_tag(code: str | None) -> str | None:
    """zh_CN and ZH as zh-CN and zh."""
    if code is None:
        return None
    primary, *others = re.split("[-_]", code.strip())
    if not re.fullmatch("[A-Za-z]{2,3}", primary) or not all(re.fullmatch("[A-Za-z0-9]+", each) for each in others):
        raise SpecError(f"{code!r} is no language code", "such as de, zh-Hans, pt-BR")
    return "-".join([primary.lower(), *others])


@contextmanager
def _nothing_is_lost(fresh: bool) -> Iterator[None]:
    """Say so to a user who interrupts it."""
    try:
        yield
    except Interrupted as error:
        same = "the same command without --fresh" if fresh else "the same command"
        remedy = error.remedy or f"{same} goes on: what was answered is not requested again"
        raise Interrupted(str(error), remedy) from error


def _show_curve(curve: "Curve", path: Path, as_json: bool) -> None:
    from orchestrator.views import terminal

    if as_json:
        terminal.print_json(curve.model_dump(mode="json"))
        return
    terminal.print_curve(curve)
    terminal.print_scores(curve.test)
    say(f"the curve: {path}")


def _show(folders: list[Path], as_json: bool) -> None:
    """The results of benchmarks of one run."""
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.rundir import RunDir
    from orchestrator.views import terminal

    if as_json:
        terminal.print_json([json.loads((folder / "scores.json").read_bytes()) for folder in folders])
        return
    record = RunRecord.load(RunDir(folders[0].parent.parent))
    terminal.print_scores([item for item in record.benchmarks if item.id in {folder.name for folder in folders}])
    for folder in folders:
        say(f"every sentence: {folder / 'hypotheses.jsonl'}")
