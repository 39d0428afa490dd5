"""The run spec: every problem at its place, nothing else accepted. Run: pytest tests/test_spec.py."""

import json
import logging
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import METRICS
from orchestrator.specs.compute_spec import SlurmSpec, parse_slurm_time
from orchestrator.specs.places import RESERVED_ARGUMENTS, RESERVED_ENV, RESERVED_VLLM, is_secret, reason
from orchestrator.specs.render import Checkpoint, api_arguments, export_arguments, train_arguments
from orchestrator.specs.spec import RunSpec, spec_json, spec_sha256
from orchestrator.specs.spec_file import load_spec
from tests.model_folders import declared_arguments
from tests.reports import flat

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
ARGUMENTS = declared_arguments()


def load(folder: Path, text: str, *overrides: str, arguments=ARGUMENTS) -> RunSpec:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides, arguments)


def refusal(folder: Path, text: str, *overrides: str, arguments=ARGUMENTS) -> list[str]:
    with pytest.raises(SpecError) as error:
        load(folder, text, *overrides, arguments=arguments)
    assert error.value.remedy == f"edit {folder / 's.yaml'}"
    return [line.replace(f"{folder}/", "") for line in flat(str(error.value))]


def with_train(*lines: str) -> str:
    return LEAST.replace("train:\n", "train:\n" + "".join(f"  {line}\n" for line in lines))


def test_the_least_spec_has_every_default_and_without_an_installation_any_argument(tmp_path):
    anything = load(tmp_path, with_train("whatever: 1"), arguments=None).train
    assert anything is not None and anything.extra_arguments() == {"whatever": 1, "learning_rate": 5e-4}
    spec = load(tmp_path, LEAST)
    assert (spec.seed, spec.serve.host, spec.serve.port) == (42, "127.0.0.1", None)
    assert spec.train is not None
    assert spec.train.arguments() == {"stage": "sft", "finetuning_type": "lora", "learning_rate": 5e-4}
    (bench,) = spec.benchmark
    assert (bench.split, bench.metrics, bench.temperature) == ("test", list(METRICS), 0)


def test_all_problems_come_at_once_each_at_its_place_with_a_suggestion(tmp_path):
    text = """\
name: my run
modle: {}
model: {name_or_path: '', tmplate: x, trust_remote_code: 3}
dataset: 7
train: {learning_rate: x, output_dir: y, lora_rnk: 3, plot_loss: no, max_samples: 0, eval_strategy: stps}
benchmark:
  - testset: a
    metrics: [bleu, blue]
    max_token: 3
  - {}
serve:
  port: 0
  vllm_maxle: 3
  learning_rate: 3
seed: -1
"""
    assert refusal(tmp_path, text, "benchmark.0.concurrency=0", "compute.devices=0", "compute.slurm.benchmark=x") == [
        "s.yaml has 22 errors:",
        "--set compute.devices=0: compute.devices: expected text: write it in quotes (got 0)",
        "--set compute.slurm.benchmark=x: compute.slurm.benchmark: unknown field",
        "s.yaml:1:1: name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$' (got 'my run')",
        "s.yaml:2:1: modle: unknown field; did you mean 'model'?",
        "s.yaml:3:9: model.name_or_path: String should have at least 1 character (got '')",
        "s.yaml:3:27: model.tmplate: unknown field; did you mean 'template'?",
        "s.yaml:3:39: model.trust_remote_code: Input should be a valid boolean, unable to interpret input (got 3)",
        "s.yaml:4:1: dataset: expected text, or a list of texts (got 7)",
        "s.yaml:5:9: train.learning_rate: expected a number, got 'x'",
        "s.yaml:5:27: train.output_dir: output_dir is managed by orchestrator: it is output/ in the run folder",
        "s.yaml:5:42: train.lora_rnk: unknown argument for the installed LLaMA-Factory; did you mean 'lora_rank'?",
        "s.yaml:5:55: train.plot_loss: expected true or false, got 'no'",
        "s.yaml:5:70: train.max_samples: Input should be greater than 0 (got 0)",
        "s.yaml:5:86: train.eval_strategy: expected one of 'no', 'steps', 'epoch'; got 'stps'; did you mean 'steps'?",
        "--set benchmark.0.concurrency=0: benchmark.0.concurrency: Input should be greater than or equal to 1 (got 0)",
        "s.yaml:8:21: benchmark.0.metrics.1: Input should be 'bleu', 'chrf', 'chrf++' or 'ter' (got 'blue')",
        "s.yaml:9:5: benchmark.0.max_token: unknown field; did you mean 'max_tokens'?",
        "s.yaml:10:5: benchmark.1.testset: missing",
        "s.yaml:12:3: serve.port: Input should be greater than or equal to 1 (got 0)",
        "s.yaml:13:3: serve.vllm_maxle: unknown argument for the installed LLaMA-Factory; did you mean 'vllm_maxlen'?",
        "s.yaml:14:3: serve.learning_rate: llamafactory-cli api does not take it, only train",
        "s.yaml:15:1: seed: Input should be greater than or equal to 0 (got -1)",
    ]  # fmt: skip


@pytest.mark.parametrize(("section", "reserved"), [("train", RESERVED_ARGUMENTS), ("serve", RESERVED_VLLM)])
def test_an_argument_with_a_place_of_its_own_is_refused_with_that_place(section, reserved, tmp_path):
    names = sorted(set(reserved) - {"export_dir"})
    backend = ["serve.backend=vllm"] if section == "serve" else []
    lines = refusal(tmp_path, LEAST, *backend, *(f"{section}.{key}=x" for key in names), arguments=None)
    assert sorted(lines[1:]) == [
        f"--set {section}.{key}=x: {section}.{key}: {key} is managed by orchestrator: {reason(reserved[key])}"
        for key in names
    ]


def test_a_variable_with_a_place_of_its_own_is_refused_in_env(tmp_path):
    for name, place in RESERVED_ENV.items():
        lines = refusal(tmp_path, LEAST + f"compute: {{env: {{{name}: '1'}}}}\n")
        assert any(f"env holds {name}: {reason(place)}" in line for line in lines)


def test_every_place_is_a_field_of_a_spec():
    spec = RunSpec(name="a", model={"name_or_path": "m"}, serve={})
    fields = {("", name) for name in RunSpec.model_fields}
    for section in ("model", "serve", "export", "compute"):
        fields |= {(section, name) for name in type(getattr(spec, section)).model_fields}
    assert {place for place in (RESERVED_ARGUMENTS | RESERVED_ENV).values() if isinstance(place, tuple)} <= fields


@pytest.mark.parametrize(
    ("lines", "dropped"),
    [
        (["compute: {rdzv_id: null, ray: false, ray_timeout_s: 600.0, slurm: {nodes: 1, benchmark: null}}"], ""),
        (["compute: {min_nnodes: 2, ray: true}"], "compute.min_nnodes, compute.ray"),
        (["compute: {slurm: {benchmark: {time: 5}}}"], "compute.slurm.benchmark"),
        (["  - {testset: b, during: true}", "compute: {max_restarts: 3}"], "compute.max_restarts, benchmark.during"),
    ],
)
def test_fields_of_earlier_versions_are_left_out_with_one_line(lines, dropped, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "orchestrator"):
        load(tmp_path, LEAST + "\n".join(lines))
    path = tmp_path / "s.yaml"
    expected = [f"{path}: fields of an earlier version are left out: {dropped}"] if dropped else []
    assert [record.getMessage() for record in caplog.records] == expected


def test_a_secret_is_refused_and_not_shown(tmp_path):
    for override in (
        "train.hf_hub_token=some-text",
        "train.vllm_config={api_key: some-text}",
        "compute.env.GH_PAT=some-text",
        "compute.env.DB=postgres://user:some-text@host",
    ):
        with pytest.raises(SpecError, match="would go into the run folder") as error:
            load(tmp_path, LEAST, override, arguments=None)
        assert "some-text" not in str(error.value)
    with pytest.raises(SpecError, match=r"s\.yaml:6:3") as error:
        load(tmp_path, with_train("hub_token: some-text"))
    assert "some-text" not in str(error.value)


def test_a_secret_is_known_by_its_name_or_value():
    for name in (
        "HF_TOKEN", "WANDB_API_KEY", "MY_AUTH", "GH_PAT", "AWS_ACCESS_KEY_ID", "PASS", "swanlab_lark_webhook_url",
        "OPENAI_APIKEY", "CREDENTIALS", "db-password",
    ):  # fmt: skip
        assert is_secret(name, "x"), name
    for value in ("postgres://u:PASS@h", "hf_" + "a" * 34, "sk-" + "b" * 20, "AKIA" + "C" * 16):
        assert is_secret("x", value), value
    for name in ("add_tokens", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "SSH_AUTH_SOCK", "monkey"):
        assert not is_secret(name, "x"), name
    for value in ("1", "true", "", None, True, 5):
        assert not is_secret("HF_TOKEN", value), value
    for value in ("https://host/v1", "https://user@host", "skip-this", "git@host:a/b"):
        assert not is_secret("x", value), value


def test_a_server_address_with_a_secret_in_it_is_refused_and_not_shown(tmp_path):
    for url in ("http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"):
        with pytest.raises(SpecError, match=r"serve\.url holds a user|holds a secret") as error:
            load(tmp_path, f"name: a\nserve: {{url: '{url}'}}\nbenchmark: [{{testset: t}}]\n")
        assert not any(part in str(error.value) for part in ("secret@", "=secret", "#secret"))


def test_arguments_that_make_another_model_go_to_training_server_and_export(tmp_path):
    own = {"template": "t", "default_system": "s", "enable_thinking": False, "trust_remote_code": True}
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in {**own, "revision": "r"}.items()]
    overrides += ["serve.vllm_maxlen=10", "export={export_dir: elsewhere, vllm_maxlen: 2}"]
    spec = load(tmp_path, with_train("add_tokens: <a>,<b>", "rope_scaling: yarn", "cutoff_len: 1e5"), *overrides)
    assert spec.model is not None and spec.train is not None
    shared = {**own, "model_revision": "r", "add_tokens": "<a>,<b>", "rope_scaling": "yarn", "cutoff_len": 100_000}
    shared["model_name_or_path"] = "models/tiny"
    assert shared.items() <= train_arguments(spec, Checkpoint("base", spec.model)).items()
    adapter = Checkpoint("output", spec.model.trained("/out", is_adapter=True))
    shared["adapter_name_or_path"] = "/out"
    engine = {"infer_backend": "huggingface", "vllm_maxlen": 10}
    assert api_arguments(adapter, spec.serve) == {**shared, **engine}
    assert export_arguments(adapter, spec.export, Path("/x y")) == {**shared, "vllm_maxlen": 2, "export_dir": "/x y"}
    full = api_arguments(Checkpoint("output", spec.model.trained("/out", is_adapter=False)), spec.serve)
    assert full.get("add_tokens") == "<a>,<b>"
    assert not full.keys() & {"rope_scaling", "cutoff_len"}  # its own config.json has it
    saved = tmp_path / "saved.yaml"
    saved.write_text(json.dumps(spec_json(spec)))
    assert load_spec(saved, (), ARGUMENTS) == spec


def test_vllm_serves_such_an_adapter_only_merged(tmp_path):
    overrides = ["train.add_tokens=<a>", "serve.backend=vllm"]
    assert "vLLM knows nothing of add_tokens" in refusal(tmp_path, LEAST, *overrides)[1]
    for other in ("serve.merge=true", "train.finetuning_type=full", "train.add_tokens=null"):
        assert load(tmp_path, LEAST, *overrides, other).serve.backend == "vllm"


def test_an_override_arrives_in_its_type(tmp_path):
    overrides = ("train.max_steps=1e5", "train.save_strategy=no", "train.run_name=null", "train.vllm_config={a: [b]}")
    spec = load(tmp_path, LEAST, *overrides, "compute.devices='0'", "train.num_train_epochs=1")
    assert spec.train is not None and spec.compute.devices == "0"
    expected = {"max_steps": 100_000, "save_strategy": "no", "run_name": None, "vllm_config": {"a": ["b"]}}
    found = {name: value for name, value in spec.train.extra_arguments().items() if name != "learning_rate"}
    assert repr(found) == repr({**expected, "num_train_epochs": 1})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.run_name=5", 'train.run_name: expected text, got 5 (write it in quotes: "...")'),
        ("train.lora_rank=0", "train.lora_rank: expected at least 1, got 0"),
        ("train.num_train_epochs=0", "train.num_train_epochs: expected more than 0, got 0"),
        ("train.vllm_config={a: [{b: '${c}'}]}", "train.vllm_config.a.0.b: '${' cannot be passed on"),
        ('train.run_name="a\\0b"', "train.run_name: holds NUL"),
        ("train.vllm_config={'${c}': 1}", "train.vllm_config.${c}: '${' cannot be passed on"),
        ("train.learning_rate=.nan", "train.learning_rate: nan is no number that could be passed on"),
        ("train.learning_rate=2024-01-01", "train.learning_rate: YAML takes it for a date; for text"),
        ("model.arguments.rope_scaling=yar", "model.arguments.rope_scaling: expected one of 'linear', "),
        ("model.arguments.lora_rank=4", "model.arguments.lora_rank: expected one of add_tokens, "),
        ("name=", "name: expected text: write it in quotes (got None)"),
    ],
)
def test_a_problem_of_an_override_is_reported_once_with_the_override_as_its_place(override, problem, tmp_path):
    heading, line = refusal(tmp_path, LEAST, override)
    assert heading == "s.yaml has 1 error:" and line.startswith(f"--set {override}: {problem}")
    load(tmp_path, LEAST, "train.lora_rank=1", "train.num_train_epochs=0.1", "eval_dataset=null")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dataset": None}, "spec: train is there, but no dataset to train on: add dataset: NAME"),
        ({"train": None}, "spec: dataset is there, but no train section"),
        ({"train": None, "dataset": None, "benchmark": []}, "spec: nothing to do"),
        ({"train": None, "dataset": None, "eval_dataset": "a"}, "spec: eval_dataset is there, but no train section"),
        ({"model": None}, "spec: model is missing: add model: {name_or_path: FOLDER_OR_HUB_ID}"),
        ({"serve": {"url": "http://x/v1"}}, "spec: serve.url is for benchmarks without training"),
        ({"serve": {"url": "http://x/v1"}, "train": None, "dataset": None,
          "benchmark": [{"testset": "a", "base_model": True}]}, "spec: benchmark.base_model cannot be had"),
        ({"serve": {"backend": "vllm", "infer_backend": "vllm"}}, "infer_backend is nothing to backend: vllm"),
        ({"serve": {"backend": "vllm", "max_concurrent": 2}}, "max_concurrent is nothing to backend: vllm"),
        ({"serve": {"backend": "vllm", "url": "http://x/v1"}}, "url is nothing to backend: vllm"),
        ({"serve": {"merge": True}}, "merge is for backend vllm"),
        ({"compute": {"master_addr": "my host"}}, "compute.master_addr: String should match pattern"),
        ({"benchmark": [{"testset": "a", "request": {"n": 2}}]}, "n: the benchmark itself says that"),
        ({"compute": {"slurm": {"partiton": "all"}}}, "partiton: unknown field; did you mean 'partition'?"),
        ({"compute": {"slurm": {"time": "soon"}}}, "no time limit: minutes, HH:MM:SS or DAYS-HH:MM:SS"),
        ({"compute": {"slurm": {"time": "4:00", "signal_s": 180}}}, "a time limit of 240 s with signal_s 180"),
        ({"compute": {"slurm": {"options": {"mem": "1G"}}}}, "options holds mem: write it as mem"),
        ({"compute": {"slurm": {"options": {"array": "0-3"}}}}, "options holds array, which is managed"),
        ({"compute": {"slurm": {}, "devices": "0"}}, "devices is set by Slurm"),
    ],
)  # fmt: skip
def test_sections_that_contradict_each_other_are_refused(changes, problem, tmp_path):
    lines = refusal(tmp_path, LEAST, *(f"{key}={json.dumps(value)}" for key, value in changes.items()))
    assert problem in lines[1]


def test_a_time_is_read_as_slurm_reads_it():
    times = {"90": 5400, "1:30": 90, "1:30:00": 5400, "2-12": 216_000, "2-12:30": 217_800, "1-00:00:01": 86_401}
    assert {text: parse_slurm_time(text) for text in times} == times
    assert parse_slurm_time("UNLIMITED") is parse_slurm_time("one hour") is None
    assert SlurmSpec(time="4:01").time_limit_s == 241  # a second is left after the signal
    assert SlurmSpec(time="infinite").time_limit_s is None


def test_a_server_or_a_model_alone_is_a_spec(tmp_path):
    spec = load(tmp_path, "name: a\nserve: {url: 'https://example.org/v1'}\nbenchmark: [{testset: t}]\n")
    assert spec.model is None
    text = "name: s\nmodel: {name_or_path: m}\n"
    assert load(tmp_path, text + "serve: {}\n").serve.host == "127.0.0.1"
    spec = load(tmp_path, text + "export: {export_dir: out, vllm_maxlen: 5}\n")
    assert (spec.export.export_dir, spec.export.extra_arguments()) == ("out", {"vllm_maxlen": 5})
    assert load(tmp_path, LEAST, "serve={backend: vllm, merge: true, max_model_len: 5}").serve.merge


@pytest.mark.parametrize("line", ["dataset: a,b", "dataset: [a, b]", "dataset: 'a , b'"])
def test_several_datasets_are_written_with_commas_or_as_a_list(line, tmp_path):
    spec = load(tmp_path, LEAST.replace("dataset: captions_en_de", f"{line}\neval_dataset: [b, c]"))
    assert spec.datasets == ["a", "b"]
    assert spec.eval_names == {"b": "b-validation", "c": "c"}
    spec = spec.model_copy(update={"eval_dataset": ["b-validation", "b"]})
    assert spec.eval_names == {"b-validation": "b-validation", "b": "b-validation-validation"}


def test_the_hash_does_not_depend_on_how_a_spec_is_written(tmp_path):
    other = "# a comment\nmodel: {name_or_path: 'models/tiny'}\nbenchmark: [{testset: captions_en_de, split: test}]\n"
    other += "train: {learning_rate: 0.0005, stage: sft}\nseed: 42\ndataset: captions_en_de\nname: toy\nserve: {}\n"
    assert spec_sha256(load(tmp_path, LEAST)) == spec_sha256(load(tmp_path, other))
    for override in ("seed=43", "train.learning_rate=6e-4", "model.template=qwen", "benchmark.0.max_tokens=255"):
        assert spec_sha256(load(tmp_path, LEAST)) != spec_sha256(load(tmp_path, LEAST, override))
