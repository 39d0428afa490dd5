"""A workspace and the programs that one command works with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from orchestrator.data.datasets import ArchiveStore, entry_folders
from orchestrator.errors import PrerequisiteError
from orchestrator.runs.rundir import Workspace, find_workspace
from orchestrator.specs.arguments import Argument
from orchestrator.specs.render import Renderer
from orchestrator.specs.spec import API_KEY_ENV, RunSpec
from orchestrator.specs.spec_file import load_spec
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import Installation, find_installation


@dataclass(frozen=True)
class Session:
    """What every command works with."""

    workspace: Workspace
    installation: Installation | PrerequisiteError  # why there is none: a server of others can do without
    renderer: Renderer
    archives: ArchiveStore
    dataset_folders: list[Path]
    api_key: str = field(default="", repr=False)  # of a server that runs, or of `serve`; '': none, or a random one

    @classmethod
    def open(cls, workspace: Path | None = None, archives: Path | None = None) -> Self:
        """The session of a command: its --workspace and --from, and the environment; SpecError without a workspace."""
        place = find_workspace(workspace)
        try:
            installation: Installation | PrerequisiteError = find_installation()
        except PrerequisiteError as error:
            installation = error
        return cls(
            workspace=place,
            installation=installation,
            renderer=Renderer(place.templates),
            archives=ArchiveStore.from_environment(archives),
            dataset_folders=entry_folders(place.dataset_info),
            api_key=os.environ.get(API_KEY_ENV, ""),
        )

    def load_spec(self, path: Path, overrides: Sequence[str] = ()) -> RunSpec:
        """A spec file, its arguments checked one by one against the LLaMA-Factory in use."""
        return load_spec(path, overrides, self.arguments)

    def llamafactory(self) -> Installation:
        if isinstance(self.installation, PrerequisiteError):
            raise self.installation
        return self.installation

    @cached_property
    def arguments(self) -> dict[str, Argument] | None:
        """LLaMA-Factory's arguments by name, to check a spec against; None where they cannot be known."""
        installation = self.llamafactory_or_none()
        return (read_arguments(installation) or None) if installation is not None else None

    def llamafactory_or_none(self) -> Installation | None:
        return None if isinstance(self.installation, PrerequisiteError) else self.installation
