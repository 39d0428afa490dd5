"""The command that benchmarks a model, trained here or not.

Flags in, one call, results on stdout, everything else on stderr.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from orchestrator.errors import Interrupted, SpecError
from orchestrator.files import expanded

if TYPE_CHECKING:
    from orchestrator.benchmark.curve import Curve

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
        int | None, typer.Option(min=1, help="Requests under way at once. Default: adapted to the server.")
    ] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the --max-samples sentences with this seed.")
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
        str | None, typer.Option(help="What the model is told to do. Default: as it was trained.")
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
    speed: Annotated[
        bool, typer.Option("--speed", help="Stream 20 sentences at the end: time to first token, and per token.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask every sentence anew, whatever was answered before.")
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

    RUN@all: every checkpoint on the validation set; the earliest that is not significantly worse than the best is
    chosen, and that one alone is put to the test sets of the run's spec.
    """
    from orchestrator.benchmark.afterwards import score_again
    from orchestrator.benchmark.evaluate import Asking
    from orchestrator.benchmark.finished import is_finished
    from orchestrator.data.testset import SPLIT, FilePair, is_sacrebleu
    from orchestrator.lifecycle import benchmark_target as targets
    from orchestrator.serving.target import every_checkpoint_of, every_checkpoint_target
    from orchestrator.specs.benchmark_spec import BenchmarkSpec

    session = open_session(workspace, archives)
    if comet is not None and comet.endswith(".ckpt"):
        comet = str(expanded(comet).absolute())
    if is_finished(Path(target)):
        folder = Path(target).resolve()
        if comet is None or testset or source or speed or fresh:
            what = f"{target} is a finished benchmark: what it asked stands, and only COMET's score can be added"
            raise SpecError(what, "--comet MODEL, and nothing that is asked; orchestrator compare takes it too")
        score_again(session, folder, comet, devices)
        _show([folder], as_json)
        return
    run = every_checkpoint_of(target, session.workspace)
    if run is None and (metric is not None or base):
        raise SpecError("--metric and --base are for RUN@all")
    if run is not None and template is not None:
        raise SpecError("--template is for a model of no run of ours", "leave it out: the run's is taken")
    found = open_target(session, target, template) if run is None else every_checkpoint_target(run)
    if source is not None or reference is not None:
        if source is None or reference is None or testset is not None:
            raise SpecError("--source and --reference go together, and without --testset")
        pair = FilePair(source, reference, source_lang, target_lang, instruction)
        session, testset = with_files(session, found, pair)
        split = SPLIT
        instruction = None  # it is the pair's
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
        "comet": comet,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    settings = serve_settings(found, devices, port, model_name, backend, merge)
    how = Asking(fresh=fresh, allow_incomplete=allow_incomplete, streamed=speed)
    if run is not None:
        with _goes_on(fresh):
            curve = targets.benchmark_all(
                session, found, testset, split, given, settings, how, metric=metric or "bleu", with_base=base
            )
        _show_curve(curve, run.curve, as_json)
        return
    if split is not None:
        given["split"] = split
    if testset is not None:
        items = [BenchmarkSpec.model_validate({"testset": testset, **given})]
    else:
        own = found.spec.benchmark if found.spec else []
        items = [item.model_copy(update=given) for item in own]
    with _goes_on(fresh):
        folders = targets.benchmark(session, found, items, settings, how)
    _show(folders, as_json)


@contextmanager
def _goes_on(fresh: bool) -> Iterator[None]:
    """One who interrupts it is told that nothing is lost."""
    try:
        yield
    except Interrupted as error:
        same = "the same command without --fresh" if fresh else "the same command"
        raise Interrupted(
            str(error), error.remedy or f"{same} goes on: what was answered is not asked again"
        ) from error


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


@app.command("benchmark-during", hidden=True)
def benchmark_during(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that trains.")],
    cwd: Annotated[Path, typer.Option(help="The folder that relative paths are meant from.")],
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
) -> None:
    """Benchmark a run's checkpoints as they appear; the run's owner starts this."""
    from orchestrator.benchmark.during import benchmark_as_they_appear
    from orchestrator.runs.rundir import RunDir

    os.chdir(cwd)
    benchmark_as_they_appear(open_session(workspace, archives), RunDir(folder))
