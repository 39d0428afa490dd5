"""The command that sets benchmarks against each other."""

from typing import Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, WorkspaceOption

# The modules that do it are imported within the command: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator compare demo@base demo")
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...", help="Runs, RUN@LABEL, benchmark folders, or a group; the first is the baseline."
        ),
    ],
    testset: Annotated[
        str | None, typer.Option(metavar="NAME[:SPLIT]", help="Default: the newest that all were benchmarked on.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="bleu, chrf, chrf++ or ter; repeatable. Default: all that all have.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=0, help="Sentences shown where each wins. Default: 3; of a group none.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which is better, by how much, and can this test set tell? Paired tests of benchmarks, each with the first.

    The runs of a group are ranked, each compared with the best.
    """
    from orchestrator.benchmark.compare import compare as compare_benchmarks
    from orchestrator.benchmark.results import find_compared
    from orchestrator.runs.workspace import find_workspace
    from orchestrator.views import terminal
    from orchestrator.views.comparison import comparison_text

    found = find_compared(systems, find_workspace(workspace), testset, metric or ())
    n_examples = examples if examples is not None else 3 if found.group is None else 0
    comparison = compare_benchmarks(found, metric or (), n_examples=n_examples)
    if as_json:
        terminal.print_json(comparison.model_dump(mode="json"))
    else:
        terminal.console().print(comparison_text(comparison))
