"""What is asked of LLaMA-Factory about a spec, what becomes of its answer, and when it is asked again.

Run: pytest tests/test_ask_llamafactory.py. The real answers are in test_check_arguments.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Finding
from orchestrator.planning import ask_llamafactory as module
from orchestrator.planning.ask_llamafactory import Answer, ask_llamafactory, sample_lines, without_repeats
from orchestrator.planning.session import Session
from orchestrator.upstream.installation import SCRIPTS, AskError
from orchestrator.upstream.vllm import VARIABLE
from tests import fake_vllm
from tests.imported_once import Imported
from tests.workshop import Workshop

TOKENS = {"min": 40, "median": 49.5, "max": 58}
SAMPLE = {
    "from": "file", "read": 100, "kept": 100, "problems": [], "tokens": TOKENS, "over_cutoff": 3,
    "first": {"text": [["<s>Translate.\nHello", False], ["Hallo\x1b</s>", True]]},
}  # fmt: skip


class Asked:
    """In place of ask: keeps the questions, and gives an answer."""

    def __init__(self) -> None:
        self.questions: list[Any] = []
        self.environments: list[dict[str, str]] = []
        self.records: list[str] = []
        self.answer: Any = {"problems": [], "datasets": []}

    def __call__(self, python: Path, script: str, question: Any, *, timeout_s: float, environment: Any) -> Any:
        assert script == "check_arguments" and timeout_s >= 60
        json.dumps(question)
        self.questions.append(question)
        self.environments.append(dict(environment))
        for point in question["points"]:
            if "train" in point:
                folder = Path(point["train"]["dataset_dir"])
                info = json.loads((folder / "dataset_info.json").read_text("ascii"))
                self.records += [(folder / each["file_name"]).read_text("ascii") for each in info.values()]
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    made = Asked()
    monkeypatch.setattr(module, "ask", made)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    return made


def specs_of(workshop: Workshop, *changes: dict[str, Any]) -> tuple[Session, list[Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_LLAMAFACTORY", str(workshop.cli))
        session = Session.open(workshop.root)
    return session, [session.load_spec(workshop.spec(**each)) for each in changes]


def problem(arguments: list[str], message: str = "No.", kind: str = "refused", **more: Any) -> dict[str, Any]:
    return {"point": 0, "command": "train", "arguments": arguments, "message": message, "kind": kind, **more}


def test_the_question_is_what_llamafactory_will_be_given_and_the_first_records(
    workshop: Workshop, asked: Asked
) -> None:
    serve, compute = (
        {"temperature": 0.1},
        {"env": {"DISABLE_VERSION_CHECK": "1", "PYTHONPATH": "/x", "LD_PRELOAD": "y"}},
    )
    ask_llamafactory(*specs_of(workshop, {"serve": serve, "export": {"export_size": 2}, "compute": compute}))
    ((point,),) = [question["points"] for question in asked.questions]
    model = {"model_name_or_path": str(workshop.root / "models" / "tiny"), "template": "smollm2"}
    assert point["train"].items() >= {**model, "do_train": True, "learning_rate": 5.0e-4, "use_cpu": True}.items()
    assert point["api"] == {**model, "infer_backend": "huggingface", "temperature": 0.1}
    assert point["export"] == {**model, "export_size": 2, "export_dir": "export"} and point["torchrun"] is False
    (lines,) = [text.splitlines() for text in asked.records]
    assert len(lines) == asked.questions[0]["limit"] == 100 and json.loads(lines[0]).keys() == {
        "instruction", "input", "output",
    }  # fmt: skip
    (environment,) = asked.environments
    assert environment["DISABLE_VERSION_CHECK"] == "1" and not environment.keys() & {"PYTHONPATH", "LD_PRELOAD"}
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HF_HUB_OFFLINE"]) == ("", "1")
    assert environment["USE_MODELSCOPE_HUB"] == "0"


@pytest.mark.parametrize(
    ("compute", "variables", "expected"),
    [
        ({}, {}, False),
        ({"nproc_per_node": 2}, {}, True),
        ({"devices": "0,1"}, {}, True),
        ({"devices": "0"}, {}, False),
        ({}, {"FORCE_TORCHRUN": "1"}, True),
        ({}, {"FORCE_TORCHRUN": "0"}, False),
        ({"slurm": {}}, {}, None),
    ],
)
def test_whether_torchrun_starts_the_training_is_told_as_far_as_it_is_known(
    compute: dict[str, Any], variables: dict[str, str], expected: bool | None, workshop: Workshop, asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ask_llamafactory(*specs_of(workshop, {"compute": compute}))
    assert asked.questions[0]["points"][0]["torchrun"] is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (problem(["fp16", "bf16"]), ("error", "spec", "train.fp16", "LLaMA-Factory refuses this: No.")),
        (problem([]), ("error", "spec", "train", "LLaMA-Factory refuses this: No.")),
        (problem(["adapter_name_or_path"]), ("error", "spec", "model.adapter_name_or_path", "LLaMA-Factory refuses")),
        (problem(["dataset"], kind="unknown"), ("note", "missing", "dataset", "not checked: No.")),
        (problem(["temperature"], command="api"), ("error", "spec", "serve.temperature", "LLaMA-Factory refuses")),
        (problem(["infer_backend"], command="api"), ("error", "spec", "serve.infer_backend", "LLaMA-Factory refuses")),
        (problem(["export_size"], command="export"), ("error", "spec", "export.export_size", "LLaMA-Factory refuses")),
        (problem(["optim"], "run `pip install -U a-b`", "missing"), ("error", "missing", "train.optim", "run `pip")),
    ],
)
def test_a_problem_is_a_finding_at_the_place_that_the_spec_has_it(
    found: dict[str, Any], expected: tuple[str, str, str, str], workshop: Workshop, asked: Asked
) -> None:
    asked.answer = {"problems": [found, {**found, "command": "export"}], "datasets": [None]}
    ((finding,),) = [answer.findings for answer in ask_llamafactory(*specs_of(workshop, {}))]
    assert (finding.severity, finding.kind, finding.field) == expected[:3] and finding.message.startswith(expected[3])
    if found["kind"] == "missing":
        assert finding.remedy.endswith("python -m pip install a-b")
    elif len(found["arguments"]) > 1:
        assert finding.remedy == "change train.fp16 or train.bf16"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({}, None),
        (
            {"problems": [{"record": 7, "message": "KeyError: 'x\x1b'", "fatal": True}] * 3},
            ("error", "LLaMA-Factory cannot train on captions_en_de: record 7: KeyError: 'x\\x1b' (and 2 more)"),
        ),
        (
            {"problems": [{"record": 1, "message": "it lacks turns", "fatal": False}], "kept": 99},
            ("warning", "1 of the first 100 records of captions_en_de are left out: record 1: it lacks turns"),
        ),
        (
            {"from": "hf_hub", "read": 0, "problems": [{"record": None, "message": "offline", "fatal": True}]},
            ("note", "captions_en_de was not read, since the network is not used here: offline"),
        ),
    ],
)
def test_what_the_loader_says_of_records_is_a_finding_of_the_dataset(
    sample: dict[str, Any], expected: tuple[str, str] | None, workshop: Workshop, asked: Asked
) -> None:
    asked.answer = {"problems": [], "datasets": [{"captions_en_de": {**SAMPLE, **sample}}]}
    (answer,) = ask_llamafactory(*specs_of(workshop, {}))
    found = [(each.severity, each.field, each.message) for each in answer.findings]
    assert found == ([(expected[0], "dataset", expected[1])] if expected else [])


def test_a_sample_is_shown_with_what_is_trained_on_and_without_control_characters() -> None:
    assert sample_lines("d", SAMPLE) == [
        "d: 100 of the first 100 records are trained on; 40 to 58 tokens, median 49.5; 3 longer than cutoff_len",
        "  the first as the model sees it:",
        "     prompt | <s>Translate.\\nHello",
        "    trained | Hallo\\x1b</s>",
    ]
    assert sample_lines("d", {**SAMPLE, "kept": 0, "tokens": None, "first": None}) == [
        "d: 0 of the first 100 records are trained on"
    ]


def test_one_question_is_for_all_specs_and_an_answer_is_kept_until_something_changes(
    workshop: Workshop, asked: Asked
) -> None:
    session, specs = specs_of(workshop, *({"train": {"lora_rank": rank}} for rank in (4, 8, 16)))
    asked.answer = {"problems": [], "datasets": [{"captions_en_de": SAMPLE}] * 3}
    first = ask_llamafactory(session, specs[:2])
    assert [len(question["points"]) for question in asked.questions] == [2] and len({*asked.records}) == 1
    again = ask_llamafactory(session, specs)
    assert [len(question["points"]) for question in asked.questions] == [2, 1]
    assert again[:2] == first and first[0].samples == {"captions_en_de": SAMPLE}
    (workshop.root / "models" / "tiny" / "tokenizer.json").write_text("{}")
    ask_llamafactory(session, specs)
    assert [len(question["points"]) for question in asked.questions] == [2, 1, 3]


@pytest.mark.parametrize("answer", [{"problems": [problem(["fp16"])], "datasets": [None]}, AskError("torch is broken")])
def test_an_answer_with_errors_or_none_at_all_is_not_kept(answer: Any, workshop: Workshop, asked: Asked) -> None:
    asked.answer = answer
    session, specs = specs_of(workshop, {})
    found = [ask_llamafactory(session, specs)[0].findings[0] for _ in range(2)]
    assert len(asked.questions) == 2
    if isinstance(answer, AskError):
        assert found[0].severity == "warning" and "could not be asked" in found[0].message
        assert "torch is broken" in found[0].message


def test_a_server_of_others_is_nothing_to_ask_about(workshop: Workshop, asked: Asked) -> None:
    changes = {"dataset": None, "train": None, "serve": {"url": "http://127.0.0.1:9/v1"}}
    assert ask_llamafactory(*specs_of(workshop, changes, {**changes, "model": None})) == [Answer(), Answer()]
    assert asked.questions == []


def test_what_a_fast_check_has_found_wrong_is_not_said_twice() -> None:
    wrong = [Finding("error", "spec", "model.template", "no template"), Finding("warning", "spec", "train", "x")]
    mine = [Finding("error", "spec", field, "no") for field in ("model.name_or_path", "train", "dataset.0")]
    assert without_repeats(Answer(mine), wrong) == mine[1:]
    assert without_repeats(Answer(mine), [Finding("error", "spec", "dataset.0", "none")]) == mine[:2]


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        ({"max_num_seqs": 4}, []),
        ({"max_num_seqs": "many"}, [("error", "serve.max_num_seqs")]),
        ({"enforce_eager": False, "disable_log_stats": False}, [("error", "serve.disable_log_stats")]),
    ],
)
def test_vllm_s_arguments_are_its_own_parser_s_to_judge(
    serve: dict[str, Any], expected: list[tuple[str, str]], workshop: Workshop, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "ask", Asked())
    monkeypatch.setenv(VARIABLE, str(fake_vllm.install(tmp_path / "vllm")))
    (answer,) = ask_llamafactory(*specs_of(workshop, {"serve": {"backend": "vllm", **serve}}))
    assert [(each.severity, each.field) for each in answer.findings] == expected


# The commands


def test_check_asks_once_and_launch_after_it_not_at_all(workshop: Workshop) -> None:
    spec = workshop.spec()
    first = workshop.run("check", spec)
    assert first.code == 0 and "asking LLaMA-Factory" in first.err
    for words in (("check", spec), ("launch", spec, "--dry-run"), ("launch", spec, "--no-benchmark"), ("rerun", "toy")):
        done = workshop.run(*words)
        assert done.code == 0 and "asking LLaMA-Factory" not in done.err, done.err
    assert len(workshop.calls("check_arguments")) == 1
    assert workshop.run("check", spec, "--fast", "--set", "seed=1").code == 0
    assert len(workshop.calls("check_arguments")) == 1
    assert workshop.run("launch", spec, "--dry-run", "--sweep", "train.lora_rank=4,8,16").code == 0
    assert len(workshop.calls("check_arguments")) == 2


def test_what_is_refused_ends_check_launch_and_a_sweep(workshop: Workshop, tmp_path: Path) -> None:
    spec, answer = workshop.spec(), tmp_path / "answer.json"
    answer.write_text(
        json.dumps({"problems": [problem(["fp16"], point=1), problem(["bf16"], "Nein.")], "datasets": []})
    )
    for words in (("check", spec), ("launch", spec)):
        done = workshop.run(*words, FAKE_ANSWER=str(answer))
        assert done.code == 2 and "train.bf16: LLaMA-Factory refuses this: Nein." in done.err
    done = workshop.run("launch", spec, "--sweep", "seed=1,2,3", FAKE_ANSWER=str(answer))
    assert done.code == 2 and "seed=1" in done.err and "No." in done.err and "Nein." in done.err
    assert workshop.run_folders() == []


def test_that_llamafactory_cannot_be_asked_is_a_warning(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text("Traceback")
    done = workshop.run("launch", workshop.spec(), "--dry-run", FAKE_ANSWER=str(tmp_path / "answer.json"))
    assert done.code == 0 and "warning: llamafactory-cli: LLaMA-Factory could not be asked" in done.err


def test_check_shows_what_the_loader_found_as_text_and_as_json(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(json.dumps({"problems": [], "datasets": [{"captions_en_de": SAMPLE}]}))
    done = workshop.run("check", workshop.spec(), "--json", FAKE_ANSWER=str(tmp_path / "answer.json"))
    assert "captions_en_de: 100 of the first 100" in done.err and "trained | Hallo\\x1b" in done.err
    assert done.json()["datasets"] == {"captions_en_de": SAMPLE}
    assert all(each["severity"] != "error" for each in done.json()["findings"])


@pytest.mark.integration
def test_the_real_llamafactory_takes_a_usual_training_and_shows_its_first_record(
    llamafactory: Imported, workshop: Workshop, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def forked(python: Path, script: str, question: Any, *, timeout_s: float, environment: dict[str, str]) -> Any:
        return llamafactory.script(SCRIPTS / f"{script}.py", cwd=tmp_path, input=json.dumps(question), **environment)

    monkeypatch.setattr(module, "ask", forked)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    model = {"name_or_path": str(tiny_model), "template": "smollm2"}
    session, specs = specs_of(workshop, {"model": model}, {"model": model, "train": {"bf16": True, "fp16": True}})
    taken, refused = ask_llamafactory(session, specs)
    assert taken.findings == []
    sample = taken.samples["captions_en_de"]
    assert (sample["read"], sample["kept"], sample["problems"]) == (40, 40, [])
    assert [is_trained for _, is_trained in sample["first"]["text"]] == [False, True]
    assert [each.field for each in refused.findings] == ["train.bf16"]


@pytest.mark.parametrize("name", ["fsdp_config", "accelerator_config"])
def test_a_file_that_the_parser_reads_is_asked_about_again_when_it_has_changed(
    name: str, workshop: Workshop, asked: Asked
) -> None:
    file = workshop.root / "its.json"
    specs = specs_of(workshop, {"train": {name: str(file)}})
    for content in ("{}", '{"a": 2}'):
        file.write_text(content)
        ask_llamafactory(*specs)
        ask_llamafactory(*specs)
    assert len(asked.questions) == 2


def test_an_inline_configuration_may_be_longer_than_a_files_name(workshop: Workshop, asked: Asked) -> None:
    inline = {"zero_optimization": {"stage": 2, **{f"key_{n}": True for n in range(50)}}}
    ask_llamafactory(
        *specs_of(workshop, {"train": {"deepspeed": inline}}, {"train": {"deepspeed": json.dumps(inline)}})
    )
    assert [len(each["points"]) for each in asked.questions] == [2]


def test_points_with_other_variables_are_asked_about_in_processes_of_their_own(
    workshop: Workshop, asked: Asked
) -> None:
    points = [{"compute": {"env": {"X": value}}, "seed": seed} for seed, value in enumerate("121")]
    ask_llamafactory(*specs_of(workshop, *points))
    assert [each["X"] for each in asked.environments] == ["1", "2"]
    assert [len(each["points"]) for each in asked.questions] == [2, 1]
