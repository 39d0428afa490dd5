"""What is asked of LLaMA-Factory about a spec, what becomes of its answer, and when it is asked again.

Run: pytest tests/test_ask_llamafactory.py. The real answers are in test_check_arguments.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Finding
from orchestrator.planning import ask_llamafactory as module
from orchestrator.planning.ask_llamafactory import Answer, ask_llamafactory, sample_lines, without_repeats
from orchestrator.planning.session import Session
from orchestrator.upstream.installation import AskError
from orchestrator.upstream.vllm import VARIABLE
from tests import fake_vllm
from tests.workshop import new_workshop

TOKENS = {"min": 40, "median": 49.5, "max": 58}
SAMPLE = {
    "from": "file", "read": 100, "kept": 100, "problems": [], "tokens": TOKENS, "over_cutoff": 3,
    "first": {"text": [["<s>Translate.\nHello", False], ["Hallo\x1b</s>", True]]},
}  # fmt: skip


class Asked:
    """In place of ask: keeps the questions, and gives an answer."""

    def __init__(self, shop, session):
        self.shop, self.session = shop, session
        self.questions, self.environments, self.records = [], [], []
        self.answer: Any = {"problems": [], "datasets": []}

    def __call__(self, python, script, question, *, timeout_s, environment):
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

    def specs(self, *changes):
        return [self.session.load_spec(self.shop.spec(**each)) for each in changes]

    def about(self, *changes):
        """Ask about specs with these changes."""
        return ask_llamafactory(self.session, self.specs(*changes))

    @property
    def counts(self):
        """How many specs each question was about."""
        return [len(question["points"]) for question in self.questions]


@pytest.fixture(scope="module")
def opened(tmp_path_factory, fake_cli):
    """A workspace and its session: LLaMA-Factory is looked for once."""
    shop = new_workshop(tmp_path_factory.mktemp("asked"), fake_cli)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_LLAMAFACTORY", str(shop.cli))
        return shop, Session.open(shop.root)


@pytest.fixture
def asked(opened, monkeypatch, tmp_path):
    made = Asked(*opened)
    monkeypatch.setattr(module, "ask", made)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    return made


def problem(arguments, message="No.", kind="refused", **more):
    return {"point": 0, "command": "train", "arguments": arguments, "message": message, "kind": kind, **more}


def test_the_question_is_what_llamafactory_will_be_given_and_the_first_records(asked):
    env = {"DISABLE_VERSION_CHECK": "1", "PYTHONPATH": "/x", "LD_PRELOAD": "y"}
    asked.about({"serve": {"temperature": 0.1}, "export": {"export_size": 2}, "compute": {"env": env}})
    ((point,),) = [question["points"] for question in asked.questions]
    model = {"model_name_or_path": str(asked.shop.root / "models" / "tiny"), "template": "smollm2"}
    assert point["train"].items() >= {**model, "do_train": True, "learning_rate": 5.0e-4, "use_cpu": True}.items()
    assert point["api"] == {**model, "infer_backend": "huggingface", "temperature": 0.1}
    assert point["export"] == {**model, "export_size": 2, "export_dir": "export"}
    (lines,) = [text.splitlines() for text in asked.records]
    assert len(lines) == asked.questions[0]["limit"] == 100
    assert json.loads(lines[0]).keys() == {"instruction", "input", "output"}
    (environment,) = asked.environments
    assert environment["DISABLE_VERSION_CHECK"] == "1" and not environment.keys() & {"PYTHONPATH", "LD_PRELOAD"}
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HF_HUB_OFFLINE"]) == ("", "1")
    assert environment["USE_MODELSCOPE_HUB"] == "0"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (problem(["fp16", "bf16"]), ("error", "spec", "train.fp16", "LLaMA-Factory refuses this: No.")),
        (problem([]), ("error", "spec", "train", "LLaMA-Factory refuses this: No.")),
        (problem(["add_tokens"]), ("error", "spec", "model.arguments.add_tokens", "LLaMA-Factory refuses")),
        (problem(["dataset"], kind="unknown"), ("note", "missing", "dataset", "not checked: No.")),
        (problem(["temperature"], command="api"), ("error", "spec", "serve.temperature", "LLaMA-Factory refuses")),
        (problem(["export_size"], command="export"), ("error", "spec", "export.export_size", "LLaMA-Factory refuses")),
        (problem(["optim"], "run `pip install a-b`", "missing"), ("error", "missing", "train.optim", "run `pip")),
    ],
)
def test_a_problem_is_a_finding_at_the_place_that_the_spec_has_it(found, expected, asked):
    asked.answer = {"problems": [found, {**found, "command": "export"}], "datasets": [None]}
    ((finding,),) = [answer.findings for answer in asked.about({})]
    assert (finding.severity, finding.kind, finding.field) == expected[:3] and finding.message.startswith(expected[3])
    assert (finding.remedy == "change train.fp16 or train.bf16") == (len(found["arguments"]) > 1)


@pytest.mark.parametrize(
    ("record", "fatal", "sample", "severity", "expected"),
    [
        (7, True, {"from": "hf_hub"}, "error", "LLaMA-Factory cannot train on X: record 7: no\\x1b (and 1 more)"),
        (1, False, {}, "warning", "2 of the first 100 records of X are left out: record 1: no\\x1b (and 1 more)"),
        (None, True, {"from": "hf_hub", "read": 0}, "note", "X was not read, since the network is not used here: no"),
    ],
)
def test_what_the_loader_says_of_records_is_a_finding(record, fatal, sample, severity, expected, asked):
    problems = [{"record": record, "message": "no\x1b" if record else "no", "fatal": fatal}] * 2
    asked.answer = {"problems": [], "datasets": [{"captions_en_de": {**SAMPLE, **sample, "problems": problems}}]}
    ((finding,),) = [answer.findings for answer in asked.about({})]
    found = (finding.severity, finding.field, finding.message)
    assert found == (severity, "dataset", expected.replace("X", "captions_en_de"))


def test_a_sample_is_shown_with_what_is_trained_on_and_without_control_characters():
    assert sample_lines("d", SAMPLE) == [
        "d: 100 of the first 100 records are trained on; 40 to 58 tokens, median 49.5; 3 longer than cutoff_len",
        "  the first as the model sees it:",
        "     prompt | <s>Translate.\\nHello",
        "    trained | Hallo\\x1b</s>",
    ]
    none = {**SAMPLE, "kept": 0, "tokens": None, "first": None}
    assert sample_lines("d", none) == ["d: 0 of the first 100 records are trained on"]


def test_one_question_is_for_all_specs_and_an_answer_is_kept_until_something_changes(asked, tmp_path):
    shutil.copytree(asked.shop.root / "models" / "tiny", tmp_path / "model")
    (tmp_path / "its.json").write_text("{}")
    model = {"name_or_path": str(tmp_path / "model"), "template": "smollm2"}
    train = {"accelerator_config": str(tmp_path / "its.json")}
    specs = asked.specs(*({"model": model, "train": {**train, "lora_rank": rank}} for rank in (4, 8, 16)))
    asked.answer = {"problems": [], "datasets": [{"captions_en_de": SAMPLE}] * 3}
    first = ask_llamafactory(asked.session, specs[:2])
    assert asked.counts == [2] and len({*asked.records}) == 1
    again = ask_llamafactory(asked.session, specs)
    assert asked.counts == [2, 1]
    assert again[:2] == first and first[0].samples == {"captions_en_de": SAMPLE}
    for file in ("model/tokenizer.json", "its.json"):
        (tmp_path / file).write_text('{"a": 2}')
        ask_llamafactory(asked.session, specs)
    assert asked.counts == [2, 1, 3, 3]
    other = replace(asked.session.installation, versions={"transformers": "9"})
    ask_llamafactory(replace(asked.session, installation=other), specs)
    assert asked.counts == [2, 1, 3, 3, 3]


@pytest.mark.parametrize("answer", [{"problems": [problem(["fp16"])], "datasets": [None]}, AskError("torch is broken")])
def test_an_answer_with_errors_or_none_at_all_is_not_kept(answer, asked):
    asked.answer = answer
    found = [asked.about({})[0].findings[0] for _ in range(2)]
    assert asked.counts == [1, 1]
    if isinstance(answer, AskError):
        assert found[0].severity == "warning" and "could not be asked" in found[0].message
        assert "torch is broken" in found[0].message


def test_a_server_of_others_is_nothing_to_ask_about(asked):
    changes = {"dataset": None, "train": None, "serve": {"url": "http://127.0.0.1:9/v1"}, "model": None}
    assert asked.about(changes) == [Answer()] and asked.questions == []


def test_an_inline_configuration_may_be_longer_than_a_files_name(asked):
    inline = {"zero_optimization": {"stage": 2, **{f"key_{n}": True for n in range(50)}}}
    asked.about({"train": {"deepspeed": inline}}, {"train": {"deepspeed": json.dumps(inline)}})
    assert asked.counts == [2]


def test_points_with_other_variables_are_asked_about_in_processes_of_their_own(asked):
    asked.about(*({"compute": {"env": {"X": value}}, "seed": seed} for seed, value in enumerate("121")))
    assert [each["X"] for each in asked.environments] == ["1", "2"] and asked.counts == [2, 1]
    asked.about({"compute": {"env": {"X": "3"}}, "seed": 0})
    assert asked.counts == [2, 1, 1]  # another variable is another question


def test_what_a_fast_check_has_found_wrong_is_not_found_twice():
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
def test_vllm_s_arguments_are_its_own_parser_s_to_judge(serve, expected, asked, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(fake_vllm.install(tmp_path / "vllm")))
    (answer,) = asked.about({"serve": {"backend": "vllm", **serve}})
    assert [(each.severity, each.field) for each in answer.findings] == expected


def test_check_asks_once_and_launch_after_it_not_at_all(workshop):
    spec = workshop.spec()
    first = workshop.run("check", spec)
    assert first.code == 0 and "asking LLaMA-Factory" in first.err
    done = workshop.run("launch", spec, "--dry-run")
    assert done.code == 0 and "asking LLaMA-Factory" not in done.err, done.err
    assert workshop.run("check", spec, "--fast", "--set", "seed=1").code == 0
    assert len(workshop.calls("check_arguments")) == 1
    assert workshop.run("launch", spec, "--dry-run", "--sweep", "train.lora_rank=4,8,16").code == 0
    assert len(workshop.calls("check_arguments")) == 2


def test_what_is_refused_ends_check_launch_and_a_sweep(workshop, tmp_path):
    spec, answer = workshop.spec(), tmp_path / "answer.json"
    problems = [problem(["fp16"], point=1), problem(["bf16"], "Nein.")]
    answer.write_text(json.dumps({"problems": problems, "datasets": [{"captions_en_de": SAMPLE}]}))
    done = workshop.run("check", spec, "--json", FAKE_ANSWER=str(answer))
    assert done.code == 2 and "train.bf16: LLaMA-Factory refuses this: Nein." in done.err
    assert "captions_en_de: 100 of the first 100" in done.err and "trained | Hallo\\x1b" in done.err
    assert done.json()["datasets"] == {"captions_en_de": SAMPLE}
    assert [each["field"] for each in done.json()["findings"] if each["severity"] == "error"] == ["train.bf16"]
    done = workshop.run("launch", spec, FAKE_ANSWER=str(answer))
    assert done.code == 2 and "Nein." in done.err
    done = workshop.run("launch", spec, "--sweep", "seed=1,2,3", FAKE_ANSWER=str(answer))
    assert done.code == 2 and "seed=1" in done.err and "No." in done.err and "Nein." in done.err
    assert workshop.run_folders() == []
