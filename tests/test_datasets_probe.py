"""LLaMA-Factory's own verdict on datasets, by upstream/scripts/datasets_probe.py. One start of its Python for all."""

import json

import pytest

from orchestrator.data.datasets import prompt
from orchestrator.upstream.installation import SCRIPTS

pytestmark = pytest.mark.integration

ALPACA = {"instruction": "Say it.", "input": "", "output": "Hello."}
TURNS = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
PAIR = {
    "conversations": TURNS["conversations"][:1],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
SHAREGPT = {"formatting": "sharegpt"}
MESSAGES = {"messages": "conversations"}
RANKING = {**SHAREGPT, "ranking": True, "columns": {**MESSAGES, "chosen": "chosen", "rejected": "rejected"}}
KTO = {**SHAREGPT, "columns": {**MESSAGES, "kto_tag": "label"}}
ANSWERED = {"prompt": "instruction", "response": "output"}
IMAGES = {"columns": {**ANSWERED, "images": "i"}}
CHOICE = {"prompt": "q", "chosen": "good", "rejected": "bad"}
LABELLED = [{**TURNS, "label": True}, {**TURNS, "label": False}]


def turns(*values, **others):
    """A conversation of the user and the model in turn, or of the roles given with the values."""
    roles = ("human", "gpt")
    pairs = [value if isinstance(value, tuple) else (roles[n % 2], value) for n, value in enumerate(values)]
    return {"conversations": [{"from": role, "value": value} for role, value in pairs], **others}


HARD = ' a\u2028b\x85 "größer" \\ {{ x }} \r😀 '


# name: records or the file's text, stage, entry
KEPT = {
    "alpaca": ([ALPACA] * 3, "sft", {}),
    "instruction and input": ([{"instruction": "Translate.", "input": HARD, "output": "Hello."}], "sft", {}),
    "alpaca in ppo": ([ALPACA], "ppo", {}),
    "texts": (["a text", "another"], "pt", {"columns": {"prompt": "text"}}),
    "sharegpt": ([TURNS, turns(("system", "s"), ("human", "a"), ("gpt", "b"))], "sft", SHAREGPT),
    "pairs in dpo": ([PAIR] * 2, "dpo", RANKING),
    "alpaca pairs": ([{"q": "a", "good": "b", "bad": "c"}], "dpo", {"ranking": True, "columns": CHOICE}),
    "kto": (LABELLED, "kto", KTO),
    "csv": ("q,a\nx,y\n", "sft", {"file_name": "x.csv", "columns": {"prompt": "q", "response": "a"}}),
    "part of a split": ([ALPACA] * 9, "sft", {"split": "train[:4]"}),
    # once refused here, and right
    "a raw tab and a line break": ('[{"instruction": "a\tb", "input": "", "output": "c\nd"}]', "sft", {}),
    "the word <image> for a model of texts": ([{**ALPACA, "input": "<image>", "output": "<video>"}], "sft", {}),
}

# name: records or the file's text, stage, entry, record, what is said
FATAL = {
    "no records": ("", "sft", {"file_name": "empty.jsonl"}, None, "corresponds to no data"),
    "not json": ('{"instruction": x}\n', "sft", {"file_name": "bad.jsonl"}, None, "JSON parse error"),
    "an unknown column": ([ALPACA], "sft", {"columns": {**ANSWERED, "response": "ouput"}}, 1, "KeyError: 'ouput'"),
    "no input": ([{"instruction": "a", "output": "b"}], "sft", {}, 1, "'input'; the record has instruction, output"),
    "mixed types": ([ALPACA, {**ALPACA, "output": ["y"]}], "sft", {}, None, "got a 'list' object"),
    "no pairs in dpo": ([ALPACA], "dpo", {}, None, "not applicable in the current training stage"),
    "a turn of null": ([TURNS, turns("hi", None)], "sft", SHAREGPT, 2, "Expected a string, got None"),
    "images for a model of texts": ([{**ALPACA, "i": ["a.jpg"]}], "sft", IMAGES, 1, "does not support image input"),
    "all dropped": ([{**ALPACA, "output": None}] * 2, "sft", {}, None, "Cannot find valid samples"),
    "beside a dropped one": ([*LABELLED, turns(("gpt", "a"), label=True), *LABELLED], "kto", KTO, None, "IndexError"),
}

# name: the second of three records, the others, stage, entry, what is said
DROPPED = {
    "roles in another order": (turns(("gpt", "a"), ("human", "b")), TURNS, "sft", SHAREGPT, "Invalid role tag"),
    "one answer of two": ({**PAIR, "rejected": None}, PAIR, "dpo", RANKING, "no example for stage rm"),
    "no answer": ({**ALPACA, "output": None}, ALPACA, "sft", {}, "no example for stage sft"),
}

ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from datasets_probe import probe
from llamafactory.hparams import get_train_args
usual = json.loads(sys.argv[2])
for own in json.loads(sys.argv[3]):
    model_args, data_args, training_args, finetuning_args, _ = get_train_args({**usual, **own})
    found = probe(model_args, data_args, training_args, finetuning_args)
    print("\\nANSWERS " + json.dumps(found), flush=True)
"""
CUTOFF = {"cutoff_len": 16, "template": "chatml"}


@pytest.fixture(scope="module")
def answers(llamafactory, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    cases = {**KEPT}
    cases |= {name: case[:3] for name, case in FATAL.items()}
    cases |= {name: ([good, bad, good], stage, info) for name, (bad, good, stage, info, _) in DROPPED.items()}
    cases["long"] = ([{**ALPACA, "output": "word " * n} for n in (1, 40, 2)], "sft", {})
    cases["many"] = ([{**ALPACA, "output": None}, *[ALPACA] * 120], "sft", {"num_samples": 500})
    infos = {}
    for number, (name, (content, _, info)) in enumerate(cases.items()):
        place = folder / str(number)
        place.mkdir()
        file = place / info.get("file_name", "x.jsonl" if str(content).startswith("{") else "x.json")
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        infos[name] = {**info, "file_name": str(file)}
    (folder / "dataset_info.json").write_text(json.dumps(infos))
    usual = {
        "model_name_or_path": str(tiny_model), "do_train": True, "use_cpu": True, "dataset_dir": str(folder),
        "output_dir": str(folder / "output"), "template": "chatml", "reward_model": str(tiny_model),
    }  # fmt: skip
    asked = []
    for stage in ("sft", "pt", "ppo", "dpo", "rm", "kto"):
        names = [name for name, case in cases.items() if case[1] == stage and name not in ("long", "alpaca")]
        asked.append({"stage": stage, "dataset": names})
    asked.append({"stage": "sft", "dataset": ["long"], "eval_dataset": ["alpaca"], **CUTOFF})
    asked.append({"stage": "sft", "dataset": ["sharegpt"], "template": "llama3"})
    done = llamafactory.run(ASK, SCRIPTS, json.dumps(usual), json.dumps(asked), cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # a line of the log may follow on the same line
    lines = [json.JSONDecoder().raw_decode(each)[0] for each in done.stdout.split("\nANSWERS ")[1:]]
    return {**{name: answer for line in lines[:-1] for name, answer in line.items()}, "llama3": lines[-1]["sharegpt"]}


@pytest.mark.parametrize("name", KEPT)
def test_what_llamafactory_trains_on_has_no_problems(name, answers):
    found = answers[name]
    assert found["problems"] == []
    assert found["from"] == "file" and found["kept"] == found["read"] > 0
    assert 0 < found["tokens"]["min"] <= found["tokens"]["median"] <= found["tokens"]["max"]


@pytest.mark.parametrize("name", FATAL)
def test_what_ends_llamafactory_is_reported_with_its_own_words(name, answers):
    *_, record, said = FATAL[name]
    fatal = [problem for problem in answers[name]["problems"] if problem["fatal"]]
    assert fatal[0]["record"] == record
    assert said in fatal[0]["message"]


@pytest.mark.parametrize("name", DROPPED)
def test_a_record_that_is_dropped_is_reported_with_its_number(name, answers):
    (problem,) = answers[name]["problems"]
    assert (problem["record"], problem["fatal"]) == (2, False)
    assert DROPPED[name][-1] in problem["message"]
    assert (answers[name]["read"], answers[name]["kept"]) == (3, 2)


def asked(text):
    return [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", False]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("part of a split", {"text": [asked("Say it."), ["Hello.<|im_end|>\n", True]]}),
        # the user's turn that a benchmark sends
        ("instruction and input", {"text": [asked(prompt("Translate.", HARD)), ["Hello.<|im_end|>\n", True]]}),
        ("texts", {"text": [["a text<|im_end|>", True]]}),
        ("alpaca in ppo", {"text": [asked("Say it.")]}),
        ("alpaca pairs", {"text": [asked("a"), ["b<|im_end|>\n", True]],
                          "rejected": [asked("a"), ["c<|im_end|>\n", True]]}),
        ("long", {"text": [["<|im_start|>user\nSay it.", False], ["word <|im_end|>\n", True]]}),  # cut to 16 tokens
        ("all dropped", None),
    ],
)  # fmt: skip
def test_the_first_record_is_shown_as_the_model_sees_it(name, first, answers):
    assert answers[name]["first"] == first


def test_tokens_are_counted_before_they_are_cut(answers):
    found = answers["long"]
    assert found["tokens"] == {"min": 25, "median": 28, "max": 142} and found["over_cutoff"] == 3
    assert answers["alpaca"]["over_cutoff"] == 3  # an eval_dataset is answered too
    assert answers["sharegpt"]["over_cutoff"] == 0


def test_the_first_hundred_are_read_however_many_are_drawn(answers):
    found = answers["many"]
    assert (found["read"], found["kept"]) == (100, 99)
    assert [problem["record"] for problem in found["problems"]] == [1]


def test_a_template_whose_words_the_model_lacks_is_reported(answers):
    problem = answers["llama3"]["problems"][0]
    assert problem["fatal"] and "token '<|eot_id|>' is number 600, and the model knows 600" in problem["message"]
