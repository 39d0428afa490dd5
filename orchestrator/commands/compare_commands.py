"""The command that sets benchmarks against each other.

Flags in, one call, results on stdout, everything else on stderr.
"""

from typing import Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, WorkspaceOption

# The modules that do it are imported within the command: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator compare demo@base demo")
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="Runs, RUN@LABEL, or benchmark folders. The first is the baseline."),
    ],
    testset: Annotated[
        str | None, typer.Option(metavar="NAME[:SPLIT]", help="Default: the newest that all were benchmarked on.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="bleu, chrf, chrf++ or ter; repeatable. Default: all that all have.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Sentences shown where each wins.")] = 3,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which is better, by how much, and can this test set tell? Paired tests of benchmarks, each with the first."""
    from orchestrator.benchmark.compare import compare as compared
    from orchestrator.benchmark.finished import find_benchmarks
    from orchestrator.commands import terminal
    from orchestrator.commands.compare_output import comparison_text
    from orchestrator.runs.rundir import find_workspace

    found = find_benchmarks(systems, find_workspace(workspace), testset)
    comparison = compared(found, metric or (), n_examples=examples)
    if as_json:
        terminal.print_json(comparison.model_dump(mode="json"))
    else:
        terminal.console().print(comparison_text(comparison))
