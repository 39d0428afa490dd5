"""The run spec: every problem at its place, nothing else accepted. Run: pytest tests/test_spec.py."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.planning.schema import spec_schema
from orchestrator.planning.spec_file import load_spec
from orchestrator.specs.arguments import Argument
from orchestrator.specs.benchmark_spec import METRICS
from orchestrator.specs.compute_spec import OWNED_VARIABLES
from orchestrator.specs.spec import (
    OWNED,
    ExportSpec,
    ModelSpec,
    RunSpec,
    ServeSpec,
    spec_json,
    spec_sha256,
    training_arguments,
)
from tests.reports import flat

ROOT = Path(__file__).resolve().parent.parent
LEAST = """\
name: toy
model:
  name_or_path: models/tiny
dataset: captions_en_de
train:
  learning_rate: 5.0e-4
benchmark:
  - testset: captions_en_de
"""
TRAIN, BOTH = frozenset({"train"}), frozenset({"train", "api", "export"})


def argument(name: str, *kinds: str, commands: frozenset[str] = TRAIN, choices=None, optional=False) -> Argument:
    return Argument(name, frozenset(kinds), choices, optional, commands)


ARGUMENTS = {
    each.name: each
    for each in (
        argument("learning_rate", "float"),
        argument("num_train_epochs", "float"),
        argument("max_steps", "int"),
        argument("lora_rank", "int"),
        argument("plot_loss", "bool"),
        argument("run_name", "str", optional=True),
        argument("report_to", "str", "list"),
        argument("save_strategy", "str", choices=("no", "steps", "epoch")),
        argument("vllm_config", "str", "dict", commands=BOTH),
        argument("vllm_maxlen", "int", commands=BOTH),
    )
}


def load(folder: Path, text: str, *overrides: str, arguments=ARGUMENTS) -> RunSpec:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides, arguments)


def refusal(folder: Path, text: str, *overrides: str, arguments=ARGUMENTS) -> list[str]:
    """The lines of the error, the folder's name left out."""
    with pytest.raises(SpecError) as error:
        load(folder, text, *overrides, arguments=arguments)
    return [line.replace(f"{folder}/", "") for line in flat(str(error.value))]


def with_train(line: str) -> str:
    return LEAST.replace("train:\n", f"train:\n  {line}\n")


def test_the_least_spec_has_every_default(tmp_path):
    spec = load(tmp_path, LEAST)
    assert (spec.seed, spec.serve.host, spec.serve.port) == (42, "127.0.0.1", None)
    assert spec.train is not None
    assert spec.train.arguments() == {"stage": "sft", "finetuning_type": "lora", "learning_rate": 5e-4}
    (bench,) = spec.benchmark
    assert (bench.split, bench.metrics, bench.temperature) == ("test", list(METRICS), 0)


def test_all_problems_are_said_at_once_each_at_its_place_with_a_suggestion(tmp_path):
    text = """\
name: my run
modle: {}
model: {name_or_path: '', tmplate: x, trust_remote_code: 3}
dataset: 7
train: {learning_rate: x, output_dir: y, lora_rnk: 3, plot_loss: no, max_samples: 0, save_strategy: stps}
benchmark:
  - testset: a
    metrics: [bleu, blue]
    max_token: 3
  - {}
serve:
  port: 0
  vllm_maxle: 3
  lora_rank: 3
seed: -1
"""
    assert refusal(tmp_path, text, "benchmark.0.concurrency=0", "compute.devices=0") == [
        "s.yaml has 21 errors:",
        "--set compute.devices=0: compute.devices: expected text: write it in quotes (got 0)",
        "s.yaml:1:1: name: expected letters, digits, dot, underscore, hyphen; at most 64; a letter or digit first"
        " (got 'my run')",
        "s.yaml:2:1: modle: unknown field; did you mean 'model'?",
        "s.yaml:3:9: model.name_or_path: String should have at least 1 character (got '')",
        "s.yaml:3:27: model.tmplate: unknown field; did you mean 'template'?",
        "s.yaml:3:39: model.trust_remote_code: Input should be a valid boolean, unable to interpret input (got 3)",
        "s.yaml:4:1: dataset: expected text, or a list of texts (got 7)",
        "s.yaml:5:9: train.learning_rate: expected a number, got 'x'",
        "s.yaml:5:27: train.output_dir: the run layer sets output_dir: it is output/ in the run folder",
        "s.yaml:5:42: train.lora_rnk: no argument of this LLaMA-Factory; did you mean 'lora_rank'?",
        "s.yaml:5:55: train.plot_loss: expected true or false, got 'no'",
        "s.yaml:5:70: train.max_samples: Input should be greater than 0 (got 0)",
        "s.yaml:5:86: train.save_strategy: expected one of 'no', 'steps', 'epoch'; got 'stps'; did you mean 'steps'?",
        "--set benchmark.0.concurrency=0: benchmark.0.concurrency: Input should be greater than or equal to 1 (got 0)",
        "s.yaml:8:21: benchmark.0.metrics.1: Input should be 'bleu', 'chrf', 'chrf++' or 'ter' (got 'blue')",
        "s.yaml:9:5: benchmark.0.max_token: unknown field; did you mean 'max_tokens'?",
        "s.yaml:10:5: benchmark.1.testset: missing",
        "s.yaml:12:3: serve.port: Input should be greater than or equal to 1 (got 0)",
        "s.yaml:13:3: serve.vllm_maxle: no argument of this LLaMA-Factory; did you mean 'vllm_maxlen'?",
        "s.yaml:14:3: serve.lora_rank: llamafactory-cli api does not take it, only train",
        "s.yaml:15:1: seed: Input should be greater than or equal to 0 (got -1)",
    ]  # fmt: skip


def test_the_remedy_names_the_file(tmp_path):
    with pytest.raises(SpecError) as error:
        load(tmp_path, LEAST + "sead: 1\n")
    assert error.value.remedy == f"edit {tmp_path / 's.yaml'}"


@pytest.mark.parametrize("key", sorted(OWNED))
def test_an_argument_of_the_run_layer_is_refused_with_the_field_to_use(key, tmp_path):
    lines = refusal(tmp_path, with_train(f"{key}: x"), arguments=None)
    assert lines[1] == f"s.yaml:6:3: train.{key}: the run layer sets {key}: {OWNED[key]}"


def test_every_field_that_an_owned_argument_points_to_exists():
    fields = {"dataset", "eval_dataset", "seed"}
    sections = (("model", ModelSpec), ("serve", ServeSpec), ("export", ExportSpec))
    for name, section in sections:
        fields |= {f"{name}.{field}" for field in section.model_fields}
    named = [
        reason.removeprefix("write it as ").removeprefix("the spec's ").partition(";")[0] for reason in OWNED.values()
    ]
    pointers = [word for word, reason in zip(named, OWNED.values(), strict=True) if reason.startswith("write it as")]
    assert pointers
    assert set(pointers) <= fields


def test_without_an_installation_argument_names_are_not_checked_but_owned_ones_are(tmp_path):
    spec = load(tmp_path, with_train("whatever: 1"), arguments=None)
    assert spec.train is not None
    assert spec.train.extra_arguments() == {"whatever": 1, "learning_rate": 5e-4}


# Strings that could not arrive


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a${b}", "'${' cannot be passed on"),
        ("${", "'${' cannot be passed on"),
        ("a\\0b", "a null byte cannot be passed on"),
        ("a\\ud800", "a lone surrogate is no text"),
    ],
)
@pytest.mark.parametrize(
    ("line", "place", "at"),
    [
        ('run_name: "{}"', "6:3", "train.run_name"),
        ('lora_target: [all, "{}"]', "6:22", "train.lora_target.1"),
        ('vllm_config: {{a: [{{b: "{}"}}]}}', "6:22", "train.vllm_config.a.0.b"),
        ('vllm_config: {{"{}": 1}}', "6:17", "train.vllm_config."),
    ],
)
def test_text_that_would_not_arrive_unchanged_is_refused_wherever_it_stands(line, place, at, value, reason, tmp_path):
    lines = refusal(tmp_path, with_train(line.format(value)))
    assert len(lines) == 2
    assert lines[1].startswith(f"s.yaml:{place}: {at}")
    assert reason in lines[1]


@pytest.mark.parametrize("field", ["model.name_or_path", "model.default_system", "serve.model_name", "compute.devices"])
def test_the_same_in_the_fields_of_the_spec_and_from_the_command_line(field, tmp_path):
    override = f"{field}=a${{b}}"
    assert refusal(tmp_path, LEAST, override)[1].startswith(f"--set {override}: {field}: '${{' cannot be passed on")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999"])
def test_what_is_no_finite_number_is_refused(number, tmp_path):
    lines = refusal(tmp_path, LEAST.replace("5.0e-4", number))
    assert len(lines) == 2
    assert lines[1].startswith("s.yaml:6:3: train.learning_rate: ")
    assert lines[1].endswith("is no number that could be passed on")


@pytest.mark.parametrize("value", ["2024-01-01", "2024-01-01 10:00:00", "!tag x", "!!binary aGk=", "!!set {a}"])
def test_a_value_that_yaml_gives_a_type_of_its_own_is_refused_with_advice(value, tmp_path):
    """A date in a file name is the usual case."""
    lines = refusal(tmp_path, with_train(f"run_name: {value}"))
    assert len(lines) == 2
    assert lines[1].startswith("s.yaml:6:3: train.run_name: YAML takes it for ")
    assert lines[1].endswith('for text write it in quotes: "..."')


# Types


@pytest.mark.parametrize(
    ("text", "at", "value"),
    [
        ("train.max_steps=5", ("train", "max_steps"), 5),
        ("train.max_steps=1e5", ("train", "max_steps"), 100_000),
        ("train.num_train_epochs=1", ("train", "num_train_epochs"), 1),
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("train.plot_loss=true", ("train", "plot_loss"), True),
        ("train.save_strategy=no", ("train", "save_strategy"), "no"),
        ("train.run_name=null", ("train", "run_name"), None),
        ("train.run_name='1e-4'", ("train", "run_name"), "1e-4"),
        ("train.run_name=a=b", ("train", "run_name"), "a=b"),
        ("train.lora_target=[q_proj, v_proj]", ("train", "lora_target"), ["q_proj", "v_proj"]),
        ("train.report_to=[a, b]", ("train", "report_to"), ["a", "b"]),
        ("train.vllm_config={a: {b: 1}}", ("train", "vllm_config"), {"a": {"b": 1}}),
        ("benchmark.0.max_samples=3", ("benchmark", 0, "max_samples"), 3),
        ("serve.port=6006", ("serve", "port"), 6006),
        ("serve.start_timeout_s=1", ("serve", "start_timeout_s"), 1.0),
        ("compute.devices='0'", ("compute", "devices"), "0"),
        ("seed=7", ("seed",), 7),
    ],
)
def test_an_override_arrives_in_its_type(text, at, value, tmp_path):
    found = spec_json(load(tmp_path, LEAST, text))
    for step in at:
        found = found[step]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_steps=x", "train.max_steps: expected an integer, got 'x'"),
        ("train.max_steps=1.5", "train.max_steps: expected an integer, got 1.5"),
        ("train.plot_loss=yes", "train.plot_loss: expected true or false, got 'yes'"),
        ("train.run_name=5", 'train.run_name: expected text, got 5 (write it in quotes: "...")'),
        ("train.max_steps=null", "train.max_steps: expected an integer, got null"),
        ("train.lora_rnk=3", "train.lora_rnk: no argument of this LLaMA-Factory; did you mean 'lora_rank'?"),
        ("train.output_dir=x", "train.output_dir: the run layer sets output_dir: it is output/ in the run folder"),
        ("modle.template=x", "modle: unknown field; did you mean 'model'?"),
        ("model.templat=x", "model.templat: unknown field; did you mean 'template'?"),
        ("model.0=x", "model.0: unknown field"),
        ("seed=1.5", "seed: Input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ("name=", "name: Input should be a valid string (got None)"),
        ("train.lora_target=3", "train.lora_target: expected text, or a list of texts (got 3)"),
        ("train.lora_target=[a, 3]", "train.lora_target.1: expected text (got 3)"),
        ("train.lora_target={a: b}", "train.lora_target: expected text, or a list of texts"),
    ],
)
def test_a_problem_of_an_override_is_said_once_with_the_override_as_its_place(override, said, tmp_path):
    assert refusal(tmp_path, LEAST, override) == ["s.yaml has 1 error:", f"--set {override}: {said}"]


# Sections that must agree


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": None}, "train is there, but no dataset to train on: add dataset: NAME"),
        ({"train": None}, "dataset is there, but no train section"),
        ({"train": None, "dataset": None, "benchmark": []}, "nothing to do"),
        ({"model": None}, "model is missing: add model: {name_or_path: FOLDER_OR_HUB_ID}"),
        ({"serve": {"url": "http://x/v1"}}, "serve.url is for benchmarks without training"),
        (
            {"serve": {"url": "http://x/v1"}, "train": None, "dataset": None,
             "benchmark": [{"testset": "a", "base_model": True}]},
            "benchmark.base_model cannot be had from serve.url",
        ),
    ],
)  # fmt: skip
def test_sections_that_contradict_each_other_are_refused(changes, said, tmp_path):
    lines = refusal(tmp_path, LEAST, *(f"{key}={_yaml(value)}" for key, value in changes.items()))
    assert lines[1].startswith(f"s.yaml:1:1: spec: {said}")


def _yaml(value: object) -> str:
    import json

    return json.dumps(value)


def test_a_spec_that_only_asks_a_server_needs_no_model(tmp_path):
    spec = load(tmp_path, "name: a\nserve: {url: 'https://example.org/v1'}\nbenchmark: [{testset: t}]\n")
    assert spec.model is None


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"])
def test_a_server_address_with_a_secret_in_it_is_refused_and_not_shown(url, tmp_path):
    """It would stand in the run folder's spec.yaml and in a table."""
    lines = refusal(tmp_path, f"name: a\nserve: {{url: '{url}'}}\nbenchmark: [{{testset: t}}]\n")
    assert "serve.url holds a user, a ? or a #" in lines[1]
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "0", "x" * 64])
def test_names_that_are_folders_on_any_system_pass(name, tmp_path):
    assert load(tmp_path, LEAST, f"name='{name}'").name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "..", "ä", "x" * 65, "a\\n", "a:b"])
def test_other_names_are_refused(name, tmp_path):
    assert refusal(tmp_path, LEAST, f'name="{name}"')[1].startswith(f'--set name="{name}": name: ')


# Hashes and what is saved


def test_the_hash_does_not_depend_on_how_a_spec_is_written(tmp_path):
    other = "# a comment\nmodel: {name_or_path: 'models/tiny'}\nbenchmark: [{testset: captions_en_de, split: test}]\n"
    other += "train: {learning_rate: 0.0005, stage: sft}\nseed: 42\ndataset: captions_en_de\nname: toy\n"
    assert spec_sha256(load(tmp_path, LEAST)) == spec_sha256(load(tmp_path, other))


@pytest.mark.parametrize(
    "override",
    [
        "seed=43",
        "train.learning_rate=6e-4",
        "model.template=qwen",
        "benchmark.0.max_tokens=255",
        "train.plot_loss=false",
    ],
)
def test_the_hash_changes_with_any_value(override, tmp_path):
    assert spec_sha256(load(tmp_path, LEAST)) != spec_sha256(load(tmp_path, LEAST, override))


def test_a_value_at_its_default_says_the_same_as_none_at_all(tmp_path):
    assert spec_sha256(load(tmp_path, LEAST)) == spec_sha256(load(tmp_path, LEAST, "seed=42", "serve={}"))


def test_every_field_says_what_it_is():
    """The docstrings are the descriptions of the JSON schema."""
    schema = spec_schema({})
    sections = {"RunSpec": schema, **schema["$defs"]}
    lacking = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section.get("properties", {}).items()
        if not field.get("description")
    ]
    assert {"RunSpec", "TrainSpec", "BenchmarkSpec", "ComputeSpec"} <= set(sections)
    assert lacking == []


@pytest.mark.parametrize("name", ["demo.yaml", "multi30k-small.yaml", "multi30k-en-de.yaml"])
def test_the_specs_that_ship_are_right(name):
    """Against the arguments of the LLaMA-Factory that is installed, if one is."""
    from orchestrator.errors import PrerequisiteError
    from orchestrator.upstream.arguments import read_arguments
    from orchestrator.upstream.installation import find_installation

    try:
        arguments = read_arguments(find_installation())
    except PrerequisiteError as error:
        pytest.skip(str(error))
    path = ROOT / "runs" / name  # beside which a user's own may lie
    spec = load_spec(path, (), arguments)
    assert spec.name == path.stem
    text = path.read_text()
    assert text.startswith("# ")
    assert f"orchestrator launch {os.path.relpath(path, ROOT)}" in text


@pytest.mark.parametrize("line", ["dataset: a,b", "dataset: [a, b]", "dataset: 'a , b'"])
def test_several_datasets_are_written_with_commas_or_as_a_list(line, tmp_path):
    spec = load(tmp_path, LEAST.replace("dataset: captions_en_de", line))
    assert spec.datasets == ["a", "b"]
    assert training_arguments(spec, spec.model)["dataset"] == "a,b"


@pytest.mark.parametrize(("line", "said"), [
    ("dataset: []", "s.yaml:1:1: spec: train is there, but no dataset to train on: add dataset: NAME"),
    ("dataset: [1]", "s.yaml:4:11: dataset.0: expected text (got 1)"),
    ("dataset: captions_en_de\neval_dataset: {a: b}", "s.yaml:5:1: eval_dataset: expected text, or a list of texts"),
])  # fmt: skip
def test_datasets_are_names(line, said, tmp_path):
    assert said in refusal(tmp_path, LEAST.replace("dataset: captions_en_de", line))


def test_a_model_alone_is_a_spec_where_it_says_how_it_is_served_or_exported(tmp_path):
    text = "name: s\nmodel: {name_or_path: m}\n"
    assert "nothing to do" in refusal(tmp_path, text)[1]
    assert load(tmp_path, text + "serve: {}\n").serve.host == "127.0.0.1"
    spec = load(tmp_path, text + "export: {export_dir: out, vllm_maxlen: 5}\n")
    assert (spec.export.export_dir, spec.export.extra_arguments()) == ("out", {"vllm_maxlen": 5})


@pytest.mark.parametrize("name", sorted(OWNED_VARIABLES))
def test_a_variable_with_a_field_of_its_own_is_refused_in_env(name, tmp_path):
    lines = refusal(tmp_path, LEAST + f"compute: {{env: {{{name}: '1'}}}}\n")
    assert any(OWNED_VARIABLES[name] in line for line in lines)


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_a_secret_is_refused_in_env(name, tmp_path):
    assert any("secret" in line for line in refusal(tmp_path, LEAST + f"compute: {{env: {{{name}: x}}}}\n"))


def test_a_variable_of_the_training_is_any_other(tmp_path):
    spec = load(tmp_path, LEAST + "compute: {env: {OMP_NUM_THREADS: '1', TOKENIZERS_PARALLELISM: 'false'}}\n")
    assert spec.compute.env == {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
