"""What the commands share: the program that they are added to, their options, what a word of theirs stands for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from typer import Argument, Option

from orchestrator.errors import SpecError
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.rundir import Workspace as WorkspaceFolder
from orchestrator.serving.target import Target, resolve_target
from orchestrator.specs.spec import ServeSpec
from orchestrator.text import escape_controls

app = typer.Typer(
    help="A thin layer over LLaMA-Factory: run specs, reruns, and benchmarks with an honest BLEU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

Run = Annotated[str, Argument(help="A run's id, a spec's name (its newest run), or latest.")]
RunOrGroup = Annotated[str, Argument(metavar="RUN|GROUP", help="A run's id, a spec's name, latest, or a group.")]
TargetName = Annotated[
    str, Argument(metavar="TARGET", help="A run, RUN@checkpoint-N, RUN@base, a folder, a hub id, URL, or spec.")
]
Workspace = Annotated[
    Path | None, Option("--workspace", metavar="PATH", help="Default: this folder, or the nearest above it.")
]
Archives = Annotated[Path | None, Option("--from", help="Folder with datasets' archives, used instead of the network.")]
Set = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override a value; repeatable.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
Devices = Annotated[str | None, Option(help="CUDA_VISIBLE_DEVICES of the server, such as 0.")]
Port = Annotated[int | None, Option(min=1, max=65535, help="Port. Default: the spec's.")]
Template = Annotated[str | None, Option(help="Chat template of a model that is not one of our runs.")]
Backend = Annotated[Literal["llamafactory", "vllm"] | None, Option(help="Server program. Default: the spec's.")]
Merge = Annotated[bool | None, Option("--merge", help="With vllm: merge the adapter first, for speed.")]
ModelName = Annotated[str | None, Option(help="The model's name on a server given by URL.")]


def say(text: str) -> None:
    """A line on stderr, or several."""
    typer.echo("\n".join(map(escape_controls, text.split("\n"))), err=True)


def is_spec(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)  # noqa: PTH113 - Path.is_file raises on long names


def find_run_or_group(place: WorkspaceFolder, word: str) -> RunDir | GroupDir:
    group = place.lookup_group(word)
    is_group = group is not None and (word == group.id or place.lookup_run(word) is None)
    return group if group is not None and is_group else place.find_run(word)


def open_target(session: Session, word: str, template: str | None = None) -> Target:
    target = resolve_target(word, session.workspace)
    if template is None:
        return target
    if target.checkpoint is None:
        raise SpecError(f"--template is for a model that is served here, not for {target.name}")
    model = target.checkpoint.model
    if model.template not in (None, template):
        what = f"{target.name} was trained with template {model.template}, not {template}"
        raise SpecError(what, "leave --template out")
    model = model.model_copy(update={"template": template})
    return replace(target, checkpoint=replace(target.checkpoint, model=model))


def serve_settings(target: Target, **given: Any) -> ServeSpec:
    """How a target is served: as its run or spec says, with the command line's values over it.

    Raises SpecError: the two do not go together.
    """
    own = target.spec.serve if target.spec else ServeSpec(url=target.url)
    changes = {key: value for key, value in given.items() if value is not None}
    kept = own.model_dump()
    if changes.get("backend", own.backend) != own.backend:  # the arguments of one backend are not the other's
        kept = {key: kept[key] for key in ("host", "port", "devices", "start_timeout_s", "url")}
    try:
        return ServeSpec.model_validate(kept | changes)
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise SpecError(what, "see --backend and --merge, and the serve section of the spec") from error
