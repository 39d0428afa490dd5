"""Whether a dataset in LLaMA-Factory's own terms can be trained on: its entry, and a look at its first records.

Covered: what LLaMA-Factory ends with an error on after minutes, or drops record by record with a warning that nobody
counts (data/loader.py, converter.py and processor/ in llamafactory, 0.9.5); its own words are in the message.
Not covered: records behind the first ones; hubs; how long texts are.
Reads nothing but the files of images, sounds and videos that records name; writes nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset
from orchestrator.errors import Finding, did_you_mean

RANKING_STAGES = ("rm", "dpo")
MEDIA = {"images": "IMAGE", "videos": "VIDEO", "audios": "AUDIO"}
"""Column -> the kind whose placeholder stands for one of its files."""
_NO_SAMPLES = "LLaMA-Factory: Cannot find valid samples"


def placeholder(kind: str) -> str:
    """The word that stands for a file of a kind of media."""
    return os.environ.get(f"{kind}_PLACEHOLDER", f"<{kind.lower()}>")


def media_columns(info: DatasetInfo) -> list[str]:
    return [name for name in MEDIA if info.column(name)]


def entry_findings(field: str, dataset: LlamaFactoryDataset, stage: str) -> list[Finding]:
    """What the entry alone shows about training in a stage."""
    info, name = dataset.info, dataset.name
    key, value = info.source()
    wanted = stage in RANKING_STAGES
    found: list[tuple[Literal["error", "warning", "note"], str, str]] = []
    if info.ranking is not wanted:
        learns = "pairs of a chosen and a rejected answer" if wanted else "no pairs of a chosen and a rejected answer"
        what = f"stage {stage} learns from {learns}, and {name} has ranking: {str(info.ranking).lower()}"
        remedy = "another dataset, or another stage" if wanted else "stages rm and dpo do"
        found.append(
            ("error", f"{what} (LLaMA-Factory: The dataset is not applicable in the current training stage)", remedy)
        )
    found += [("error", what, f"edit {dataset.path}") for what in _entry_errors(info, stage)]
    here = key == "file_name"
    splits = {re.split(r"[\[(]", part)[0].strip() for part in info.split.split("+")}
    if here and splits - {"train", "all"}:
        what = f"files have no split but train (LLaMA-Factory: Unknown split {info.split!r})"
        found.append(("error", f"{name} has split: {info.split}, and {what}", f"edit {dataset.path}"))
    if not here and info.file_name is not None:
        found.append(("warning", f"{name}: file_name is not read: LLaMA-Factory takes {key} before it", ""))
    if info.formatting == "openai":
        what = 'puts "detailed thinking off" into the system text of each record without tools'
        found.append(("warning", f"{name} has formatting: openai, for which LLaMA-Factory {what}", ""))
    if not here:
        found.append(("note", f"{name} is {value} at {key}: it is not looked at before LLaMA-Factory loads it", ""))
    return [Finding(severity, "spec", field, what, remedy) for severity, what, remedy in found]


def _entry_errors(info: DatasetInfo, stage: str) -> Iterator[str]:
    """Columns and tags that a stage needs and the entry does not name."""
    if info.ranking and not (info.column("chosen") and info.column("rejected")):
        yield "ranking: true needs columns chosen and rejected (LLaMA-Factory: KeyError: None)"
    tag = info.column("kto_tag")
    if stage == "kto" and not tag:
        yield f"stage kto needs a column kto_tag, true for a good answer and false for a bad one ({_NO_SAMPLES})"
    if stage == "sft" and tag:
        yield f"stage sft drops each record with a kto_tag: leave that column out ({_NO_SAMPLES})"
    if info.formatting == "alpaca":
        turns = "; for turns in messages it is formatting: sharegpt" if info.column("messages") else ""
        if stage in ("sft", "kto") and not info.column("response"):
            yield f"columns without response: each record is dropped for want of an answer ({_NO_SAMPLES}){turns}"
        elif not info.column("prompt") and not info.column("query"):
            yield f"columns with neither prompt nor query: each prompt is empty{turns}"
        return
    if not info.column("messages"):
        yield f"columns without messages: formatting {info.formatting} has the turns there (LLaMA-Factory: KeyError)"
    missing = [name for name in ("role_tag", "content_tag", "user_tag", "assistant_tag") if not info.tag(name)]
    if missing:
        what = "once there are tags, those left out are none, not their defaults"
        yield f"tags without {', '.join(missing)}: {what} (LLaMA-Factory: KeyError, or no valid samples)"


def record_findings(
    field: str, dataset: LlamaFactoryDataset, stage: str, records: Sequence[Any], media_dir: str | None, *, csv: bool
) -> list[Finding]:
    """What the first records show.

    Args:
        field: of the spec.
        dataset: whose records they are.
        stage: of the training.
        records: the first ones.
        media_dir: train.media_dir, absolute. None: not known.
        csv: whether they are from a CSV file, where types are guessed later.
    """
    name, remedy = dataset.name, f"edit {dataset.path}, or the data"
    if not records:
        what = f"{name} has no records (LLaMA-Factory: corresponds to no data)"
        return [Finding("error", "missing", field, what, remedy)]
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            what = f"record {number} of {name} is {_kind(record)}, expected an object"
            return [Finding("error", "missing", field, f"{what} (LLaMA-Factory: DatasetGenerationError)", remedy)]
    absent = [f"{name} has {what}" for what in _absent(dataset.info, records)]
    absent += [f"{name}: {what} (LLaMA-Factory: KeyError)" for what in _absent_tags(dataset.info, records)]
    mixed = [] if csv else [f"{name}: {what} (LLaMA-Factory: DatasetGenerationError)" for what in _mixed(records)]
    if absent or mixed:
        return [Finding("error", "missing", field, what, remedy) for what in (*absent, *mixed)]
    faults = [] if csv else [(n, fault) for n, r in enumerate(records, 1) if (fault := _fault(dataset.info, stage, r))]
    found: list[Finding] = []
    for fatal in (True, False):
        chosen = [(number, fault) for number, fault in faults if fault.is_fatal is fatal]
        if chosen:
            number, fault = chosen[0]
            of = f"{len(chosen)} of the first {len(records)} records of {name}"
            ends = f" ({_NO_SAMPLES})" if len(chosen) == len(records) and not fatal else ""
            what = f"{of} {fault.effect}, such as record {number}: {fault.reason}{ends}"
            severity: Literal["error", "warning"] = "error" if fatal or ends else "warning"
            found.append(Finding(severity, "missing", field, what, remedy))
    return found + _missing_media(field, dataset, records, media_dir)


def _missing_media(
    field: str, dataset: LlamaFactoryDataset, records: Sequence[Mapping[str, Any]], media_dir: str | None
) -> list[Finding]:
    if media_dir is None:
        return []
    columns = [column for name in MEDIA if (column := dataset.info.column(name))]
    paths = {path for record in records for column in columns for path in _paths(record.get(column))}
    gone = sorted(path for path in paths if not Path(media_dir, path).is_file())
    if not gone:
        return []
    what = f"{len(gone)} of the {len(paths)} media files that {dataset.name} begins with are not in {media_dir}"
    return [Finding("error", "missing", field, f"{what}, such as {gone[0]}", "put them there, or set train.media_dir")]


def _paths(value: Any) -> Iterator[str]:
    """Media files of a record: one, several, or frames of videos."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _read_columns(info: DatasetInfo) -> list[str]:
    """The columns that the converter reads from each record."""
    names = ["history", "prompt", "query"] if info.formatting == "alpaca" else ["messages"]
    names += ["chosen", "rejected"] if info.ranking else []
    names += ["response"] if info.formatting == "alpaca" and not info.ranking else []
    names += ["kto_tag", *MEDIA]
    # openai: looked up with a default
    return names + (["system", "tools"] if info.formatting != "openai" else [])


def _absent_tags(info: DatasetInfo, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tags that no turn has. One that some have is null in the others: all are rows of one table."""
    if info.formatting == "alpaca":
        return
    column = info.column("messages") or ""
    turns = [turn for record in records if isinstance(record.get(column), list) for turn in record[column]]
    present = list(dict.fromkeys(key for turn in turns if isinstance(turn, Mapping) for key in turn))
    for name in ("role_tag", "content_tag"):
        tag = info.tag(name)
        if tag and present and tag not in present:
            has = ", ".join(present[:12])
            yield f"the turns in {column} have no {tag!r}{did_you_mean(tag, present)}; they have {has}"


def _absent(info: DatasetInfo, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The columns that are named, or meant by default, and that no record has."""
    present = list(dict.fromkeys(key for record in records for key in record))
    absent = [(name, column) for name in _read_columns(info) if (column := info.column(name)) and column not in present]
    if not absent:
        return
    hint = did_you_mean(absent[0][1], present) if "columns" in info.model_fields_set else ""
    said = ", ".join(f"{column!r} for {name}" for name, column in absent)
    plural, has = "s" if len(absent) > 1 else "", ", ".join(present[:12])
    whole = "; it holds one object, which is read as one record: make it a list" if len(records) == 1 else ""
    yield f"no column{plural} {said} (LLaMA-Factory: KeyError: {absent[0][1]!r}); it has {has}{whole}{hint}"


def _mixed(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Places whose values are of different types: a table's column cannot hold them."""
    kinds: dict[str, dict[str, int]] = {}
    for number, record in enumerate(records, start=1):
        for at, kind in _leaves(record, ""):
            kinds.setdefault(at, {}).setdefault(kind, number)
    for at, numbers in kinds.items():
        if len(numbers) > 1:
            said = " and ".join(f"{kind} in record {number}" for kind, number in list(numbers.items())[:2])
            yield f"{at} is {said}"


def _leaves(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if at:
        yield at, _kind(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{at}[]")


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list"}
    return next((said for kind, said in kinds.items() if isinstance(value, kind)), "an object")


# Record by record, as the converters and processors see it


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a record."""

    reason: str
    is_fatal: bool = False
    """Whether LLaMA-Factory ends there; otherwise it drops the record."""

    @property
    def effect(self) -> str:
        return "end LLaMA-Factory" if self.is_fatal else "are dropped by LLaMA-Factory"


def _fault(info: DatasetInfo, stage: str, record: Mapping[str, Any]) -> _Fault | None:
    fault = _alpaca_fault(info, stage, record) if info.formatting == "alpaca" else _turns_fault(info, stage, record)
    return fault or (_media_fault(info, record) if stage != "pt" else None)


def _alpaca_fault(info: DatasetInfo, stage: str, record: Mapping[str, Any]) -> _Fault | None:
    for name in ("prompt", "query"):
        value = record.get(info.column(name) or "")
        if value and not isinstance(value, str):
            return _Fault(f"{info.column(name)} is {_kind(value)}, expected text", is_fatal=True)
    history = record.get(info.column("history") or "")
    if isinstance(history, list) and not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        return _Fault(f"{info.column('history')} is no list of pairs", is_fatal=True)
    return _answer_fault(info, stage, record, str, "text")


def _answer_fault(info: DatasetInfo, stage: str, record: Mapping[str, Any], answer: type, said: str) -> _Fault | None:
    """Whether a record has the answers that its stage learns from."""
    wanted: dict[str, type] = {}
    if stage == "kto" and (tag := info.column("kto_tag")):
        wanted, answer, said = {tag: bool}, bool, "true or false"
    elif info.ranking:
        wanted = {column: answer for name in ("chosen", "rejected") if (column := info.column(name))}
    elif info.formatting == "alpaca" and stage == "sft" and (response := info.column("response")):
        wanted = {response: str}
    for column, kind in wanted.items():
        if not isinstance(record.get(column), kind):
            return _Fault(f"{column} is {_kind(record.get(column))}, expected {said}")
    return None


def _turns_fault(info: DatasetInfo, stage: str, record: Mapping[str, Any]) -> _Fault | None:
    column, role_tag, content_tag = info.column("messages") or "", info.tag("role_tag"), info.tag("content_tag")
    turns = record.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return _Fault(f"{column} is {_kind(turns)}, expected a list of objects", is_fatal=True)
    for number, turn in enumerate(turns, start=1):
        if turn.get(content_tag or "") is None and not turn.get("tool_calls"):
            return _Fault(f"turn {number} of {column} has no {content_tag}", is_fatal=True)
    roles = [str(turn.get(role_tag or "")) for turn in turns]
    if roles[:1] == [info.tag("system_tag")]:
        roles = roles[1:]
    if info.formatting == "openai":
        roles = _merged(info, roles)
    users = (info.tag("user_tag"), info.tag("observation_tag"))
    models = (info.tag("assistant_tag"), info.tag("function_tag"))
    for number, role in enumerate(roles):
        accepted = models if number % 2 else users
        if role not in accepted:
            expected = " or ".join(str(each) for each in accepted if each)
            return _Fault(f"turn {number + 1} of {column} is of {role!r}, where {expected} is expected")
    if len(roles) % 2 != int(info.ranking):
        who = "end with the user's" if info.ranking else "end with the model's"
        return _Fault(f"{column} has {len(roles)} turn{'s' if len(roles) != 1 else ''}, and should {who}")
    if not roles:
        return _Fault(f"{column} is empty")
    return _answer_fault(info, stage, record, dict, "an object")


def _merged(info: DatasetInfo, roles: Sequence[str]) -> list[str]:
    """Answers of several tools one behind the other are one turn."""
    tool = info.tag("observation_tag")
    return [role for number, role in enumerate(roles) if role != tool or roles[number - 1 : number] != [tool]]


def _media_fault(info: DatasetInfo, record: Mapping[str, Any]) -> _Fault | None:
    """Placeholders that do not go with the record's files: counted in every message, also of models for text."""
    texts = [str(text) for text in _said(info, record)]
    counts = Counter({kind: sum(text.count(placeholder(kind)) for text in texts) for kind in MEDIA.values()})
    for name, kind in MEDIA.items():
        column = info.column(name)
        value = record.get(column) if column else None
        files = len(value) if isinstance(value, list) else int(value is not None)
        if files != counts[kind]:
            what = f"{counts[kind]} times {placeholder(kind)!r} and {files} {name}"
            return _Fault(f"{what} (LLaMA-Factory: The number of {name} does not match)", is_fatal=True)
    return None


def _said(info: DatasetInfo, record: Mapping[str, Any]) -> Iterator[Any]:
    """The texts of a record that placeholders are counted in; of two answers, the first."""
    if info.formatting == "alpaca":
        for pair in record.get(info.column("history") or "") or []:
            yield from pair
        names = ["prompt", "query", "chosen" if info.ranking else "response"]
        yield from (record.get(info.column(name) or "") or "" for name in names)
        return
    chosen = [record.get(info.column("chosen") or "")] if info.ranking else []
    for turn in [*(record.get(info.column("messages") or "") or []), *chosen]:
        if isinstance(turn, Mapping) and turn.get(info.tag("role_tag") or "") != info.tag("system_tag"):
            yield turn.get(info.tag("content_tag") or "") or ""
