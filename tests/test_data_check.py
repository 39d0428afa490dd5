"""Datasets of a spec, before LLaMA-Factory loads them: each trap with data that has it.

Run: pytest tests/test_data_check.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.archives import ArchiveStore
from orchestrator.data.data_check import check_data
from orchestrator.errors import Finding
from orchestrator.files import shipped
from orchestrator.specs.spec import RunSpec
from tests.imported_once import Imported

SHIPPED = shipped("dataset_info")
ALPACA = [
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
    {"instruction": "a", "input": "b", "output": "c"},
]
TURNS = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}] * 3
PAIRS = [
    {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
] * 3
RANKING = {"ranking": True, "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}
SHAREGPT = {"formatting": "sharegpt"}
# content, stage, entry
RIGHT = [
    (ALPACA, "sft", {}),
    (ALPACA, "pt", {"columns": {"prompt": "instruction"}}),
    (ALPACA, "ppo", {}),
    (TURNS, "sft", SHAREGPT),
    (PAIRS, "dpo", {**SHAREGPT, **RANKING}),
    (PAIRS, "rm", {**SHAREGPT, **RANKING}),
    ([{"instruction": "a", "input": "", "good": "b", "bad": "c"}], "dpo",
     {"ranking": True, "columns": {"prompt": "instruction", "chosen": "good", "rejected": "bad"}}),
    ([{**TURNS[0], "label": True}, {**TURNS[0], "label": False}], "kto",
     {**SHAREGPT, "columns": {"messages": "conversations", "kto_tag": "label"}}),
    ([{"conversations": [{"from": "system", "value": "s"}, *TURNS[0]["conversations"]]}], "sft", SHAREGPT),
    ([{"conversations": [*TURNS[0]["conversations"][:1], {"from": "function_call", "value": "f"},
                         {"from": "observation", "value": "o"}, {"from": "gpt", "value": "g"}]}], "sft", SHAREGPT),
    (["a text", "another"], "pt", {"columns": {"prompt": "text"}}),
]  # fmt: skip

# stage, entry, what is said
UNFIT = [
    ("dpo", {"ranking": True}, "needs columns chosen and rejected (LLaMA-Factory: KeyError: None)"),
    ("dpo", {"ranking": True, **SHAREGPT, "columns": {"messages": "conversations"}}, "chosen and rejected"),
    ("kto", {}, "needs a column kto_tag"),
    ("sft", {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "x"}}, "drops each record"),
    ("sft", {"columns": {"prompt": "instruction"}}, "columns without response"),
    ("sft", {"columns": {"messages": "conversations"}}, "for turns in messages it is formatting: sharegpt"),
    ("pt", {"columns": {"response": "output"}}, "neither prompt nor query"),
    ("sft", {**SHAREGPT, "columns": {"tools": "x"}}, "columns without messages"),
    ("sft", {**SHAREGPT, "tags": {"role_tag": "role", "content_tag": "content"}},
     "tags without user_tag, assistant_tag: once there are tags"),
    ("sft", {"split": "test[:5]"}, "Unknown split 'test[:5]'"),
    ("sft", {"split": "train+validation"}, "Unknown split"),
]  # fmt: skip

# content, stage, entry, what is said
FATAL = [
    ([], "sft", {}, "has no records (LLaMA-Factory: corresponds to no data)"),
    ([{"instruction": "a", "output": "b"}] * 2, "sft", {},
     "no column 'input' for query (LLaMA-Factory: KeyError: 'input'); it has instruction, output"),
    ({"data": ALPACA}, "sft", {}, "it holds one object, which is read as one record: make it a list"),
    (ALPACA, "sft", {"columns": {"prompt": "instruction", "response": "ouput"}},
     "'ouput' for response (LLaMA-Factory: KeyError: 'ouput'); it has instruction, input, output; did you mean 'o"),
    (ALPACA, "pt", {"columns": {"prompt": "text"}}, "no column 'text' for prompt"),
    (ALPACA, "sft", {"columns": {"prompt": "instruction", "response": "output", "system": "sys"}}, "column 'sys'"),
    (TURNS, "dpo", {**SHAREGPT, **RANKING},
     "no columns 'chosen' for chosen, 'rejected' for rejected (LLaMA-Factory: KeyError: 'chosen')"),
    ([1, 2], "sft", {}, "record 1 of toy is a number, expected an object"),
    ([[1], [2]], "sft", {}, "record 1 of toy is a list, expected an object"),
    ([{**ALPACA[0], "output": "x"}, {**ALPACA[0], "output": ["y"]}], "sft", {},
     "output is text in record 1 and a list in record 2 (LLaMA-Factory: DatasetGenerationError)"),
    ([{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": 3}]}], "sft", SHAREGPT,
     "conversations[].value is text in record 1 and a number in record 1"),
    (TURNS, "sft", {**SHAREGPT, "tags": {"role_tag": "role", "content_tag": "value", "user_tag": "human",
                                         "assistant_tag": "gpt"}}, "have no 'role'; they have from, value"),
    ([{"conversations": "a"}], "sft", SHAREGPT, "conversations is text, expected a list of objects"),
    ([{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": None}]}], "sft", SHAREGPT,
     "turn 2 of conversations has no value"),
    ([{"instruction": ["a"], "input": "", "output": "b"}], "sft", {}, "instruction is a list, expected text"),
    ([{**ALPACA[0], "history": [["a", "b", "c"]]}], "sft",
     {"columns": {"prompt": "instruction", "response": "output", "history": "history"}}, "no list of pairs"),
    ([{**ALPACA[0], "instruction": "see <image>"}], "sft", {}, "1 times '<image>' and 0 images"),
]  # fmt: skip

# a bad record, a good one, stage, entry, what is said
DROPPED = [
    ({"conversations": TURNS[0]["conversations"][::-1]}, TURNS[0], "sft", SHAREGPT,
     "turn 1 of conversations is of 'gpt', where human or observation is expected"),
    ({"conversations": TURNS[0]["conversations"][:1]}, TURNS[0], "sft", SHAREGPT,
     "conversations has 1 turn, and should end with the model's"),
    ({"conversations": []}, TURNS[0], "sft", SHAREGPT, "conversations is empty"),
    ({**PAIRS[0], "conversations": TURNS[0]["conversations"]}, PAIRS[0], "dpo", {**SHAREGPT, **RANKING},
     "has 2 turns, and should end with the user's"),
    ({**PAIRS[0], "rejected": None}, PAIRS[0], "dpo", {**SHAREGPT, **RANKING}, "rejected is null, expected an obj"),
    ({**ALPACA[0], "output": None}, ALPACA[0], "sft", {}, "output is null, expected text"),
    ({**TURNS[0], "label": None}, {**TURNS[0], "label": True}, "kto",
     {**SHAREGPT, "columns": {"messages": "conversations", "kto_tag": "label"}}, "label is null, expected true or"),
]  # fmt: skip


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[Finding]]:
    """Writes an entry 'toy' and its records, and checks a training on it."""

    def make(
        content: Any = None, stage: str = "sft", name: str = "toy.json", train: Any = None, **info: Any
    ) -> list[Finding]:
        if content is not None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            (tmp_path / name).write_bytes(data)
        source = {} if {"hf_hub_url", "file_name", "cloud_file_name"} & set(info) else {"file_name": name}
        entry = {"description": "x", "llamafactory": {**source, **info}}
        (tmp_path / "toy.yaml").write_text(json.dumps(entry))
        spec = RunSpec.model_validate(
            {"name": "x", "model": {"name_or_path": "m"}, "dataset": "toy", "train": {"stage": stage, **(train or {})}}
        )
        return check_data(spec, [tmp_path, SHIPPED], ArchiveStore(None, tmp_path / "cache"))

    return make


def error(found: list[Finding]) -> str:
    """The message of the only error."""
    (only,) = [each for each in found if each.severity == "error"]
    assert only.field.startswith("dataset")
    return only.message


# What is right


@pytest.mark.parametrize(("content", "stage", "info"), RIGHT)
def test_data_that_can_be_trained_on_have_no_findings(
    content: Any, stage: str, info: dict[str, Any], look: Callable[..., list[Finding]]
) -> None:
    """The base of all other tests here: what they break is whole."""
    assert look(content, stage, **info) == []


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("x.csv", "q,a\n1,2\n", {"prompt": "q", "response": "a"}),
        ("x.txt", "one\ntwo\n", {"prompt": "text"}),
        ("x.jsonl", '{"q": "1", "a": "2"}\n', {"prompt": "q", "response": "a"}),
    ],
)
def test_other_types_of_files_are_looked_at_too(
    name: str, content: str, columns: dict[str, str], look: Callable[..., list[Finding]]
) -> None:
    assert look(content, "pt", name, columns=columns) == []
    assert "no column 'x'" in error(look(content, "pt", name, columns={"prompt": "x"}))


def test_what_is_elsewhere_or_packed_is_said_not_to_be_looked_at(look: Callable[..., list[Finding]]) -> None:
    """No download, no library for parquet: a note instead."""
    (note,) = look(hf_hub_url="a/b")
    assert note.severity == "note" and "toy is a/b at hf_hub_url: it is not looked at" in note.message
    (note,) = look(cloud_file_name="s3://x/y.json")
    assert note.severity == "note" and "s3://x/y.json" in note.message
    (note,) = look("PAR1", name="x.parquet")
    assert note.severity == "note" and "is parquet" in note.message


# The entry and the stage, as loader.py and the processors have it


@pytest.mark.parametrize("stage", ["sft", "pt", "ppo", "kto", "dpo", "rm"])
@pytest.mark.parametrize("ranking", [True, False])
def test_ranking_is_for_dpo_and_rm_and_for_nothing_else(
    stage: str, ranking: bool, look: Callable[..., list[Finding]]
) -> None:
    """LLaMA-Factory passes stage dpo on as rm, and compares; kto is none of the two."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}
    if stage == "sft":
        del columns["kto_tag"]
    found = look([{**PAIRS[0], "label": True}], stage, **SHAREGPT, ranking=ranking, columns=columns)
    said = [each.message for each in found if "not applicable in the current training stage" in each.message]
    assert bool(said) is (ranking is not (stage in ("dpo", "rm")))
    assert all(f"ranking: {str(ranking).lower()}" in each for each in said)


@pytest.mark.parametrize(("stage", "info", "said"), UNFIT)
def test_an_entry_that_a_stage_cannot_use_is_an_error(
    stage: str, info: dict[str, Any], said: str, look: Callable[..., list[Finding]]
) -> None:
    """Also where the records cannot be seen; with LLaMA-Factory's own later words."""
    assert said in error(look(ALPACA, stage, **info))
    if "split" not in info:
        assert said in error(look(None, stage, hf_hub_url="a/b", **info))


@pytest.mark.parametrize("split", ["train", "train[:10]", "train[:10%]+train[-5:]", "all"])
def test_parts_of_the_split_train_are_right(split: str, look: Callable[..., list[Finding]]) -> None:
    assert look(ALPACA, split=split) == []


def test_formatting_openai_changes_the_system_text(look: Callable[..., list[Finding]]) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    (warning,) = look(turns, formatting="openai", columns={"messages": "messages"}, tags=tags)
    assert warning.severity == "warning" and "detailed thinking off" in warning.message


def test_a_file_behind_a_hub_is_not_read(look: Callable[..., list[Finding]]) -> None:
    found = look(ALPACA, hf_hub_url="a/b", file_name="toy.json")
    assert [each.severity for each in found] == ["warning", "note"]
    assert "file_name is not read: LLaMA-Factory takes hf_hub_url before it" in found[0].message


# The records


@pytest.mark.parametrize(("content", "stage", "info", "said"), FATAL)
def test_records_that_end_llamafactory_are_an_error(
    content: Any, stage: str, info: dict[str, Any], said: str, look: Callable[..., list[Finding]]
) -> None:
    assert said in error(look(content, stage, **info))


@pytest.mark.parametrize(("bad", "good", "stage", "info", "said"), DROPPED)
def test_records_that_are_dropped_are_counted(
    bad: Any, good: Any, stage: str, info: dict[str, Any], said: str, look: Callable[..., list[Finding]]
) -> None:
    """Some: a warning. All: an error, with LLaMA-Factory's own words."""
    (warning,) = look([good, good, bad], stage, **info)
    assert warning.severity == "warning" and said in warning.message
    assert "1 of the first 3 records of toy are dropped by LLaMA-Factory, such as record 3: " in warning.message
    assert "Cannot find valid samples" not in warning.message
    message = error(look([bad, bad], stage, **info))
    assert said in message and "2 of the first 2" in message and "Cannot find valid samples" in message


def test_turns_in_csv_cannot_be(look: Callable[..., list[Finding]]) -> None:
    assert "csv files cannot hold" in error(look("conversations\nx\n", name="x.csv", **SHAREGPT))


# Images, sounds, videos


def test_media_need_a_folder_that_is_named(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    """LLaMA-Factory would look in the run's folder, warn, and fail in the middle."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    content = [{"instruction": "<image>what?", "output": "x", "pictures": ["a.jpg"]}]
    info = {"columns": {"prompt": "instruction", "response": "output", "images": "pictures"}}
    (found,) = look(content, **info)
    assert found.severity == "error" and found.remedy == f"add train.media_dir: {tmp_path}"
    assert look(content, **info, train={"media_dir": str(tmp_path)}) == []
    (found,) = look(content, **info, train={"media_dir": "."})
    assert (found.field, found.severity) == ("train.media_dir", "error")
    message = error(look(content, **info, train={"media_dir": str(tmp_path / "gone")}))
    assert "1 of the 1 media files that toy begins with are not in" in message and "such as a.jpg" in message


# Several datasets, evaluation, benchmarks


def findings(root: Path, **sections: Any) -> list[Finding]:
    usual = {"name": "x", "model": {"name_or_path": "m"}, "train": {}}
    return check_data(
        RunSpec.model_validate({**usual, **sections}), [root, SHIPPED], ArchiveStore(None, root / "cache")
    )


def test_each_dataset_is_checked_under_its_own_place(tmp_path: Path) -> None:
    entry = (SHIPPED / "captions_en_de.yaml").read_text("utf-8")
    (tmp_path / "bare.yaml").write_text(entry.partition("  validation:\n")[0], "utf-8")
    shutil.copytree(SHIPPED / "captions_en_de", tmp_path / "captions_en_de")
    found = findings(tmp_path, dataset=["captions_en_de", "captoins_en_de"], eval_dataset="bare")
    assert [each.field for each in found] == ["dataset.1", "eval_dataset"]
    assert "did you mean 'captions_en_de'" in found[0].message
    assert "has no split validation" in found[1].message and "it has: train" in found[1].message
    assert [each.field for each in findings(tmp_path, dataset="captions_en_de, x")] == ["dataset.1"]


def test_a_dataset_that_is_evaluated_goes_by_the_stage_too(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    """loader.py loads both with the same function."""
    look(PAIRS, **SHAREGPT, **RANKING)
    (found,) = findings(tmp_path, dataset="captions_en_de", eval_dataset="toy")
    assert found.field == "eval_dataset" and "not applicable" in found.message


def test_own_formats_cannot_be_benchmarked(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    look(ALPACA)
    (found,) = findings(tmp_path, train=None, benchmark=[{"testset": "toy"}])
    assert found.field == "benchmark.0.testset" and "it can be trained on, not benchmarked" in found.message


@pytest.mark.parametrize("name", ["toy.json", "toy.jsonl", "toy.csv", "toy.txt"])
def test_test_sentences_in_own_formats_are_counted(
    name: str, look: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    """As a whole line of any text of a record, however deep, letter case and white space aside."""
    test = (SHIPPED / "captions_en_de" / "test.en").read_text("utf-8").splitlines()
    texts = ["nothing", f"Translate:\n  {test[0].upper()}\nThank you", test[1], f"{test[2]} and more"]
    columns = {"prompt": "text"}
    if name == "toy.json":
        content: Any = [{"text": "x", "more": [{"deep": text}]} for text in texts]
    elif name == "toy.jsonl":
        content = "\n".join(json.dumps({"text": text}) for text in texts)
    elif name == "toy.csv":
        content = "text\n" + "".join(f'"{text}"\n' for text in texts)
    else:
        content = "\n".join(texts)
    look(content, "pt", name, columns=columns)
    sections = {"dataset": "toy", "benchmark": [{"testset": "captions_en_de"}]}
    (found,) = findings(tmp_path, **sections, train={"stage": "pt"})
    assert (found.severity, found.field) == ("warning", "benchmark.0.testset")
    assert "2 of the 100 sentences of captions_en_de test stand in toy too" in found.message
    assert findings(tmp_path, **sections, train={"stage": "pt", "max_samples": 1}) == []


def test_where_overlap_cannot_be_known_it_is_said(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    look(None, hf_hub_url="a/b")
    sections = {"dataset": "toy", "benchmark": [{"testset": "captions_en_de"}]}
    found = findings(tmp_path, **sections)
    assert [each.severity for each in found] == ["note", "note"]
    assert "is not known: it is not on this machine" in found[1].message
    look(json.dumps(ALPACA[0]) + "\n" * 200 + json.dumps(ALPACA[0]) * 10 + "\n" + "x", name="toy.jsonl")
    with (tmp_path / "toy.jsonl").open("w") as file:
        file.write((json.dumps(ALPACA[0]) + "\n") * 200 + "x")
    (found,) = findings(tmp_path, **sections)
    assert found.severity == "note" and "it cannot be read to its end" in found.message


# What LLaMA-Factory itself makes of all these

TRAIN_AS_LLAMAFACTORY = """
import json, sys
from types import SimpleNamespace
from datasets import disable_progress_bars
from llamafactory.data import loader
disable_progress_bars()
model_args = SimpleNamespace(cache_dir=sys.argv[2], hf_hub_token=None)
data_args = SimpleNamespace(
    dataset_dir=sys.argv[1], media_dir=sys.argv[1], preprocessing_num_workers=None, streaming=False, max_samples=None,
    overwrite_cache=True, packing=False, template=None, mix_strategy="concat", cutoff_len=64,
)
training_args = SimpleNamespace(seed=1, local_process_index=0)
encoded = {"sft": ([1], [1]), "ppo": ([1], [1]), "rm": ([1],) * 4, "kto": (*([1],) * 4, True)}
for name, stage in json.loads(sys.argv[3]):
    stage = {"dpo": "rm"}.get(stage, stage)
    try:
        rows = loader._get_merged_dataset([name], model_args, data_args, training_args, stage)
        tokenizer = lambda texts, **_: {"input_ids": [[1] for _ in texts]}
        tokenizer.eos_token, tokenizer.__dict__["add_bos_token"] = "", False
        processor = loader._get_dataset_processor(data_args, stage, None, tokenizer, None)
        processor._encode_data_example = lambda **_: encoded[stage]
        kept = processor.preprocess_dataset(rows[:])
        print("KEPT " + json.dumps([name, max([0, *map(len, kept.values())])]))
    except Exception as error:
        print("KEPT " + json.dumps([name, type(error).__name__]))
"""


@pytest.mark.integration
def test_llamafactory_fails_on_drops_and_takes_what_the_check_says(llamafactory: Imported, tmp_path: Path) -> None:
    """Its own loader, converters and processors, on every case above; nothing is tokenized, so that what would fail
    there, a text that is null or an image that is missing, is left out.
    """
    cases: list[tuple[Any, str, dict[str, Any], Any]] = []
    cases += [(content, stage, info, len(content)) for content, stage, info in RIGHT]
    unfit = [case for case in UNFIT if "neither prompt nor query" not in case[2]]  # an empty prompt is no error there
    cases += [(ALPACA, stage, info, None) for stage, info, _ in unfit]
    later = ("1 times '<image>' and 0 images", "turn 2 of conversations has no value")
    cases += [(content, stage, info, None) for content, stage, info, said in FATAL if said not in later]
    cases += [([good, good, bad], stage, info, 2) for bad, good, stage, info, _ in DROPPED]
    infos = {}
    for number, (content, _, info, _) in enumerate(cases):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        infos[str(number)] = {"file_name": f"{number}.json", **info}
    (tmp_path / "dataset_info.json").write_text(json.dumps(infos))
    wanted = json.dumps([(str(number), stage) for number, (_, stage, _, _) in enumerate(cases)])
    done = llamafactory.run(TRAIN_AS_LLAMAFACTORY, tmp_path, tmp_path / "cache", wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = dict(json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("KEPT "))
    wrong = []
    for number, (content, stage, info, expected) in enumerate(cases):
        found = kept[str(number)]
        if found != expected and not (expected is None and (found == 0 or isinstance(found, str))):
            wrong.append((content, stage, info, expected, found))
    assert wrong == []
