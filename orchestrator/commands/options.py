"""What the commands share: their options, and what a word on the command line stands for.

Not covered: the commands (cli.py).
"""

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from orchestrator.data.testset import FilePair
    from orchestrator.planning.session import Session
    from orchestrator.runs.differences import Side
    from orchestrator.serving.target import Target
    from orchestrator.specs.spec import ServeSpec

RunArgument = Annotated[str, typer.Argument(help="A run's id, a spec's name (its newest run), or latest.")]
RunOrGroupArgument = Annotated[
    str, typer.Argument(metavar="RUN|GROUP", help="A run's id, a spec's name (its newest run), latest, or a group.")
]


class Backend(StrEnum):
    """What serves a model."""

    LLAMAFACTORY = "llamafactory"
    VLLM = "vllm"


def given_folder(text: str) -> Path:
    """A folder's name; '' would be the current one, which a variable that is not set does not mean."""
    if not text.strip():
        raise typer.BadParameter("it is empty; . is the current folder")
    return Path(text)


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="PATH",
        parser=given_folder,
        help="Folder with runs/ and dataset_info/. Default: this one, or the nearest above it.",
    ),
]
FromOption = Annotated[
    Path | None, typer.Option("--from", help="Take datasets' archives from this folder instead of the network.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the spec; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
NoBenchmarkOption = Annotated[bool, typer.Option("--no-benchmark", help="Train only.")]
DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Carry it out in the background; it outlives the terminal.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for devices that another run holds.")]
DevicesOption = Annotated[str | None, typer.Option(help="CUDA_VISIBLE_DEVICES of the server, such as 0.")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="Port. Default: the spec's.")]
TemplateOption = Annotated[str | None, typer.Option(help="Chat template, for a model of no run of ours.")]
BackendOption = Annotated[
    Backend | None, typer.Option(help="What serves it; vllm: `vllm serve` of ORCHESTRATOR_VLLM. Default: the spec's.")
]
MergeOption = Annotated[
    bool | None, typer.Option("--merge", help="With vllm: merge the adapter into its model first, for speed.")
]
ModelNameOption = Annotated[str | None, typer.Option(help="The model's name on a server given by URL.")]


def say(text: str) -> None:
    typer.echo(text, err=True)


def is_spec(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)  # noqa: PTH113 - Path.is_file raises on long names


def open_session(workspace: Path | None, archives: Path | None) -> "Session":
    from orchestrator.planning.session import Session

    return Session.open(workspace, archives)


def open_target(session: "Session", word: str, template: str | None) -> "Target":
    from orchestrator.serving.endpoint import refuse_bare_address
    from orchestrator.serving.target import resolve_target, with_template

    refuse_bare_address(word)
    return with_template(resolve_target(word, session.workspace), template)


def open_side(session: "Session", word: str, overrides: list[str] | None) -> "Side":
    from orchestrator.planning.plan import run_side, spec_side

    if is_spec(word):
        return spec_side(session, word, session.load_spec(Path(word), overrides or ()))
    if overrides:
        raise SpecError("--set is for a spec; a run is shown as it was")
    return run_side(session, session.workspace.find_run(word))


def serve_settings(
    target: "Target",
    devices: str | None,
    port: int | None,
    model_name: str | None,
    backend: str | None = None,
    merge: bool | None = None,
) -> "ServeSpec":
    """How a target is served: as its run or spec says, with what the command line says over it.

    Raises:
        SpecError: the two do not go together.
    """
    from pydantic import ValidationError

    from orchestrator.specs.spec import ServeSpec

    own = target.spec.serve if target.spec else ServeSpec(url=target.url)
    given = {"devices": devices, "port": port, "model_name": model_name, "backend": backend, "merge": merge}
    changes = {key: value for key, value in given.items() if value is not None}
    kept = own.model_dump()
    if backend not in (None, own.backend):  # the arguments of one backend are none of the other's
        kept = {
            key: value for key, value in kept.items() if key in ("host", "port", "devices", "start_timeout_s", "url")
        }
    try:
        return ServeSpec.model_validate(kept | changes)
    except ValidationError as error:
        said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise SpecError(said, "see --backend and --merge, and the serve section of the spec") from error


def with_files(session: "Session", target: "Target", pair: "FilePair") -> tuple["Session", str]:
    """The session with a pair of files as one more dataset, and that dataset's name.

    What the pair does not say is taken from the dataset that the target was trained on.
    """
    from orchestrator.data.datasets import Dataset, load_entry

    trained_on = [load_entry(name, session.dataset_folders) for name in (target.spec.datasets if target.spec else [])]
    like = next((dataset.entry for dataset in trained_on if isinstance(dataset, Dataset)), None)
    name, folder = pair.entry(like)
    return replace(session, dataset_folders=[*session.dataset_folders, folder]), name
