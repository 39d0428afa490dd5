"""Answers on disk: in hypotheses.jsonl before they count, so that a kill loses none, and in a cache across benchmarks.

The cache goes by all that decides an answer and never by a name: LLaMA-Factory calls every model gpt-3.5-turbo.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestrator.benchmark.requests import Backend, FailedSegment, Hypothesis, Message
from orchestrator.errors import StageError
from orchestrator.files import atomic_write, cache_folder, sha256_json, try_lock
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import locate_model
from orchestrator.planning.session import Session
from orchestrator.runs.record_parts import Facts
from orchestrator.specs.render import Checkpoint, api_arguments
from orchestrator.specs.spec import ServeSpec, model_arguments
from orchestrator.upstream.chat_templates import read_templates
from orchestrator.upstream.vllm import DEFAULTS, find_vllm, settings_of_environment

_PATHS = ("model_name_or_path", "adapter_name_or_path", "model_revision")
_OURS = ("orchestrator", "sacrebleu", "python")  # they request and score; they do not answer


@dataclass(frozen=True)
class Identity:
    """Cache key of a served model: weights, chat template, backend and what computes."""

    backend: Backend | None = None  # None: the server runs already; it says what it is when it is asked
    known: bool = False  # whether all weights are here, and hashed below
    model_sha256: str | None = None  # of the base model: its weights, settings and tokenizer
    adapter_sha256: str | None = None
    chat_template_sha256: str | None = None  # of its text in LLaMA-Factory. None: the tokenizer's, in model_sha256
    arguments: Mapping[str, Any] = field(default_factory=dict)  # the server's, but for the paths of the weights
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""  # cpu or gpu: it decides the dtype, and how sums are rounded

    def parts(self) -> dict[str, Any]:
        """What decides an answer, as plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "known"}


def identify(
    session: Session, checkpoint: Checkpoint, settings: ServeSpec, facts: Facts, devices: str | None
) -> Identity:
    """The identity of a checkpoint that is served here, on CUDA_VISIBLE_DEVICES `devices` (None: as it is)."""
    root, installation = session.workspace.root, session.llamafactory_or_none()
    model, backend, versions = checkpoint.model, f"llamafactory-{settings.infer_backend}", facts.versions
    base = locate_model(model.name_or_path, root, model.revision)
    adapter = locate_model(model.adapter_name_or_path, root, None) if model.adapter_name_or_path else None
    arguments = api_arguments(checkpoint, settings)
    templates = read_templates(installation).names if installation else {}
    if settings.backend == "vllm":
        # LLaMA-Factory's part is the prompt alone, and the merging
        backend, versions = "vllm", {"llamafactory": versions.get("llamafactory", ""), **find_vllm().versions}
        own = {"merge": settings.merge, **settings_of_environment()}
        arguments = {**model_arguments(model), **DEFAULTS, **settings.extra_arguments(), **own}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if devices is None else devices
    return Identity(
        backend=backend,  # type: ignore[arg-type]
        known=base is not None and (adapter is not None) == (model.adapter_name_or_path is not None),
        model_sha256=model_sha256(base) if base else None,
        adapter_sha256=model_sha256(adapter) if adapter else None,
        chat_template_sha256=templates.get(model.template or ""),
        arguments={key: value for key, value in arguments.items() if key not in _PATHS},
        versions={name: version for name, version in versions.items() if name not in _OURS},
        device="gpu" if facts.gpus and visible not in ("", "-1") else "cpu",
    )


class AnswerCache:
    """The answers of one identity under one decoding: a file of lines, which several processes may append to.

    A cache folder that cannot be read or written is left out in silence: it saves time, no more.
    """

    def __init__(self, identity: Identity, sent: Mapping[str, Any]) -> None:
        key = sha256_json({**identity.parts(), "sent": dict(sent)})
        self.path = cache_folder() / "answers" / key[:2] / f"{key}.jsonl"

    def look_up(self, prompts: Iterable[tuple[int, list[Message]]]) -> list[Hypothesis]:
        """The answers that are there, each for every index with its prompt."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return []
        known = {value.get("key"): answer for value, answer in filter(None, map(parse_line, lines))}
        keys = ((index, sha256_json(messages)) for index, messages in prompts)
        return [known[key].model_copy(update={"cached": True, "index": index}) for index, key in keys if key in known]

    def add(self, messages: list[Message], answer: Hypothesis) -> None:
        line = json_line({"key": sha256_json(messages), **answer.model_dump(exclude={"cached"})})
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.open("ab", buffering=0) as file:
                file.write(b"\n" + line)  # one write, on a line of its own whatever stood there torn


class Journal:
    """hypotheses.jsonl while a benchmark runs: a line for every result, as they come; one process at a time."""

    def __init__(self, folder: Path, sources: Sequence[str], references: Sequence[str]) -> None:
        """Open it, lock it, and read what an earlier attempt left. StageError: another process is at work there."""
        self.path = folder / "hypotheses.jsonl"
        self.answers: dict[int, Hypothesis] = {}  # also an earlier attempt's, but what had failed or is damaged
        self._sources, self._references = sources, references
        self._lock = os.open(folder, os.O_RDONLY)
        if not try_lock(self._lock):
            os.close(self._lock)
            raise StageError(f"another process is at work in {folder}", "wait for it, or stop it")
        self._file = self.path.open("ab+", buffering=0)
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        self._file.truncate(complete)  # the next line must not be glued to half of one
        for value, answer in filter(None, map(parse_line, content[:complete].split(b"\n"))):
            if 0 <= answer.index < len(sources) and value.get("source") == sources[answer.index]:
                self.answers[answer.index] = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        os.close(self._lock)

    def add(self, result: Hypothesis | FailedSegment) -> None:
        """Write a result down; an answer counts from then on."""
        line = self._line(result)
        while line:
            line = line[self._file.write(line) :]
        if isinstance(result, Hypothesis):
            self.answers[result.index] = result

    def rewrite_sorted(self, failures: Sequence[FailedSegment]) -> None:
        """Write the file anew, atomically: a line for each sentence, in the test set's order."""
        results: dict[int, Hypothesis | FailedSegment] = {each.index: each for each in failures if each.attempts}
        results |= self.answers
        atomic_write(self.path, b"".join(self._line(results[index]) for index in sorted(results)))

    def _line(self, result: Hypothesis | FailedSegment) -> bytes:
        sides = {"source": self._sources[result.index], "reference": self._references[result.index]}
        return json_line({"index": result.index, **sides, **result.model_dump()})


def parse_line(line: bytes) -> tuple[dict[str, Any], Hypothesis] | None:
    """The fields of a line of a .jsonl file, and the answer that they are; None where it is damaged or no answer."""
    try:
        value = json.loads(line)
        return value, Hypothesis.model_validate(value)
    except (ValueError, RecursionError):
        return None


def json_line(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, ensure_ascii=False)}\n".encode()
