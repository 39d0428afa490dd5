"""Answers across benchmarks, kept by all that decides them and never by a name: LLaMA-Factory's server calls every
model gpt-3.5-turbo.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.benchmark.decoding import Backend
from orchestrator.benchmark.requests import Hypothesis, Message
from orchestrator.files import cache_folder, json_mapping
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import locate_model
from orchestrator.runs.record_parts import Facts
from orchestrator.specs.render import Checkpoint, api_arguments
from orchestrator.specs.spec import ServeSpec, model_arguments
from orchestrator.upstream.installation import Installation
from orchestrator.upstream.template_text import chat_template_sha256
from orchestrator.upstream.vllm import find_vllm, settings_of_environment, with_defaults

log = logging.getLogger("orchestrator")

FLUSH_S = 1.0
_PATHS = ("model_name_or_path", "adapter_name_or_path", "model_revision")
_OURS = ("orchestrator", "sacrebleu", "python")  # they request and score; they do not answer
_LINE_BREAKS = [(char, f"\\u{ord(char):04x}") for char in "\x85\u2028\u2029"]  # json.dumps escapes the others


@dataclass(frozen=True)
class Identity:
    """Cache key of a served model: weights, chat template, backend and what computes; no name."""

    backend: Backend | None = None
    """None: the server runs already; its list of models says what it is."""
    model_sha256: str | None = None
    """Of the base model. None: not known."""
    adapter_sha256: str | None = None
    has_adapter: bool = False
    chat_template_sha256: str | None = None
    """Of the template's text."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the server is started with, template and system text among it, but for the paths of the weights."""
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    """cpu or gpu: it decides the dtype, and how sums are rounded."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    """The model's generation_config.json, a part of its hash."""

    @property
    def known(self) -> bool:
        """Whether it says all that decides an answer."""
        return self.model_sha256 is not None and (self.adapter_sha256 is not None) == self.has_adapter

    def parts(self) -> dict[str, Any]:
        """As plain JSON values, to be hashed and shown."""
        return {
            "backend": self.backend,
            "model_sha256": self.model_sha256,
            "adapter_sha256": self.adapter_sha256,
            "chat_template_sha256": self.chat_template_sha256,
            "arguments": dict(sorted(self.arguments.items())),
            "versions": dict(sorted(self.versions.items())),
            "device": self.device,
        }


def identify(
    checkpoint: Checkpoint,
    settings: ServeSpec,
    root: Path,
    facts: Facts,
    devices: str | None,
    installation: Installation | None,
) -> Identity:
    """The identity of a checkpoint that is served here, on CUDA_VISIBLE_DEVICES `devices` (None: as it is).

    Raises:
        PrerequisiteError: a file of the model cannot be read.
    """
    model = checkpoint.model
    base = locate_model(model.name_or_path, root, model.revision)
    adapter = locate_model(model.adapter_name_or_path, root, None) if model.adapter_name_or_path else None
    arguments, backend, versions = (
        api_arguments(checkpoint, settings),
        f"llamafactory-{settings.infer_backend}",
        facts.versions,
    )
    if settings.backend == "vllm":
        # LLaMA-Factory's part is the prompt alone, and the merging
        backend, versions = "vllm", {"llamafactory": versions.get("llamafactory", ""), **find_vllm().versions}
        own = {"merge": settings.merge, **settings_of_environment()}
        arguments = {**model_arguments(model), **with_defaults(settings.extra_arguments()), **own}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if devices is None else devices
    return Identity(
        backend=backend,  # type: ignore[arg-type]
        model_sha256=model_sha256(base) if base else None,
        adapter_sha256=model_sha256(adapter) if adapter else None,
        has_adapter=model.adapter_name_or_path is not None,
        chat_template_sha256=chat_template_sha256(model.template, base, installation),
        arguments={key: value for key, value in arguments.items() if key not in _PATHS},
        versions={name: version for name, version in versions.items() if name not in _OURS},
        device="gpu" if facts.gpus and visible not in ("", "-1") else "cpu",
        # `vllm serve` is given one of ours.
        generation_config=(json_mapping(base / "generation_config.json") or {}) if base and backend != "vllm" else {},
    )


class AnswerCache:
    """The answers of one identity under one decoding: a file of lines, which several processes may append to."""

    def __init__(self, identity: Identity, sent: Mapping[str, Any], folder: Path | None = None) -> None:
        """Nothing is read or written yet; the folder is answers/ in the user's cache folder unless another is given."""
        self._about = {**identity.parts(), "sent": dict(sent)}
        key = sha256_of(self._about)
        self.path = (folder or cache_folder() / "answers") / key[:2] / f"{key}.jsonl"
        self._waiting: list[bytes] = []
        self._known: set[str] = set()
        self._flushed_at, self._off = time.monotonic(), False

    def look_up(self, prompts: Iterable[tuple[int, list[Message]]]) -> list[Hypothesis]:
        """The answers that are there, each for every index with its prompt."""
        wanted: dict[str, list[int]] = {}
        for index, messages in prompts:
            wanted.setdefault(sha256_of(messages), []).append(index)
        found: dict[int, Hypothesis] = {}
        try:
            with self.path.open("rb") as file:
                for line in file:
                    key = line[9:73].decode("ascii", "replace")  # {"key": "..., so that most lines need no parser
                    parsed = parse_line(line) if key in wanted else None
                    if parsed is not None:
                        self._known.add(key)
                        update: dict[str, Any] = {"cached": True}
                        found |= {at: parsed[1].model_copy(update={**update, "index": at}) for at in wanted[key]}
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
        return list(found.values())

    def add(self, messages: list[Message], answer: Hypothesis) -> None:
        key = sha256_of(messages)
        if key not in self._known and not self._off:
            self._known.add(key)
            self._waiting.append(json_line({"key": key, **answer.model_dump(exclude={"cached"})}))
            if time.monotonic() - self._flushed_at > FLUSH_S:
                self.flush()

    def flush(self) -> None:
        """Append what was added: one write, so that the lines of two processes do not mingle."""
        self._flushed_at = time.monotonic()
        if not self._waiting or self._off:
            return
        data, self._waiting = b"".join(self._waiting), []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.open("ab+", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    data = data if file.read(1) == b"\n" else b"\n" + data  # somebody's last line was torn
                else:
                    data = json_line({"about": self._about}) + data
                file.write(data)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._off = True
        log.warning("the cache of answers is not used: %s: %s", self.path, error.strerror)


def parse_line(line: bytes) -> tuple[dict[str, Any], Hypothesis] | None:
    """The fields of a line of a .jsonl file, and the answer that they are; None where it is damaged or no answer."""
    try:
        value = json.loads(line)
        return value, Hypothesis.model_validate(value)
    except (ValueError, RecursionError):
        return None


def json_line(value: Mapping[str, Any]) -> bytes:
    """A line of a .jsonl file; one for every reader, whatever it takes for the end of a line (str.splitlines)."""
    text = json.dumps(value, ensure_ascii=False)
    for char, escaped in _LINE_BREAKS:
        text = text.replace(char, escaped)
    return f"{text}\n".encode()


def sha256_of(value: Any) -> str:
    """Hash of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
