"""LLaMA-Factory's arguments, as the one that will run declares them: asked once, since importing it takes seconds."""

import json
import logging
from contextlib import suppress

from orchestrator.errors import PrerequisiteError
from orchestrator.files import atomic_write, cache_folder, json_mapping, sha256_json
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.upstream.installation import AskError, Installation, ask

log = logging.getLogger("orchestrator")


def read_arguments(installation: Installation) -> dict[str, Argument]:
    """Every argument of the installation by name; kept in the cache until its files or the versions beside it change.

    Raises:
        PrerequisiteError: LLaMA-Factory cannot be imported, or is not as 0.9 is.
    """
    if installation.package is None:
        raise PrerequisiteError(
            f"{installation.cli}: its Python, {installation.python}, has no package llamafactory",
            f"{installation.python} -m pip install llamafactory",
        )
    changed = [path.stat().st_mtime_ns for path in sorted((installation.package / "hparams").glob("*.py"))]
    key = sha256_json([str(installation.python), installation.versions, changed])
    kept = cache_folder() / "arguments" / f"{key}.json"
    found = json_mapping(kept)
    if found is None:
        log.info("asking LLaMA-Factory for its arguments, once for this installation ...")
        try:
            found = dict(ask(installation.python, "arguments", None, timeout_s=300))
        except AskError as error:
            what = f"LLaMA-Factory did not give its arguments: {error.message}"
            raise PrerequisiteError(what, error.remedy or 'pip install "llamafactory>=0.9.5"') from error
        with suppress(OSError):  # a cache that cannot be written costs time alone
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(kept, json.dumps(found))
    return {name: _argument(name, **declared) for name, declared in found.items()}


def _argument(
    name: str, kinds: list[str], choices: list[str] | None, optional: bool, commands: list[str], help: str,
    default: object = COMPUTED,
) -> Argument:  # fmt: skip
    listed = None if choices is None else tuple(choices)
    return Argument(name, frozenset(kinds), listed, optional, frozenset(commands), default, help)
