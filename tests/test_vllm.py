"""`vllm serve`: its flags, its prompt, and the commands with it."""

import json
import signal
from dataclasses import replace

import pytest

from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.processes.ports import free_port
from orchestrator.serving.checkpoints import group_by_server
from orchestrator.serving.server import Serving
from orchestrator.serving.vllm import adapter_rank, vllm_plan
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, ServeSpec
from orchestrator.upstream.installation import AskError, Installation, find_installation
from orchestrator.upstream.vllm import (
    DEFAULTS,
    VARIABLE,
    ChatPrompt,
    argument_words,
    chat_prompt,
    find_vllm,
    parser_refusal,
    settings_of_environment,
)
from tests import fake_vllm
from tests.model_folders import adapter_folder
from tests.workshop import new_workshop, wait_for


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    return fake_vllm.install(tmp_path_factory.mktemp("vllm") / "it's its own")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, fake_cli, environment):
    """A workspace with both, LLaMA-Factory to train and vLLM to serve, where toy is trained and benchmarked."""
    folder = tmp_path_factory.mktemp("trained")
    made = new_workshop(folder, fake_vllm.llamafactory(folder / "lf bin", fake_cli), {VARIABLE: str(environment)})
    benchmark = [{"testset": "captions_en_de", "max_samples": 6, "n_bootstrap": 10, "base_model": True}]
    spec = made.spec(serve={"backend": "vllm", "max_model_len": 512}, benchmark=benchmark)
    done = made.run("launch", spec, VLLM_LOGGING_LEVEL="INFO")
    assert done.code == 0, done.err
    return made


@pytest.fixture
def trained(trained_once, tmp_path):
    made = trained_once.copy(tmp_path)
    yield made
    made.kill_all()


@pytest.mark.parametrize("release", fake_vllm.RELEASES)
def test_what_is_set_for_a_user_is_a_flag_of_each_release_that_was_read(release):
    names = {row["name"] for row in fake_vllm.table(release)}
    ours = {"host", "port", "served_model_name", "chat_template", "chat_template_content_format", "generation_config"}
    assert ours | {"enable_lora", "max_loras", "max_lora_rank", "lora_modules", *DEFAULTS} <= names


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_model_len", 512, ["--max-model-len", "512"]),
        ("max_num_seqs", 1e2, ["--max-num-seqs", "100"]),
        ("enforce_eager", True, ["--enforce-eager"]),
        ("enforce_eager", False, ["--no-enforce-eager"]),
        ("seed", None, []),
        ("hf_overrides", {"a": 1}, ["--hf-overrides", '{"a": 1}']),
        ("allowed_origins", '["*"]', ["--allowed-origins", '["*"]']),
        ("allowed_media_domains", ["a.b", "c.d"], ["--allowed-media-domains", "a.b", "c.d"]),
        ("max_model_len", -1, ["--max-model-len=-1"]),
    ],
)
def test_a_value_becomes_the_words_that_vllm_reads_it_from(name, value, words):
    assert argument_words({name: value}) == words
    parsed = fake_vllm.parser_of(fake_vllm.RELEASES[-1]).parse_args(["MODEL", *words])
    assert getattr(parsed, name) == (json.loads(value) if name == "allowed_origins" else value)


@pytest.mark.parametrize("release", fake_vllm.RELEASES)
def test_vllm_s_own_parser_says_what_it_refuses(monkeypatch, tmp_path, release):
    monkeypatch.setenv(VARIABLE, str(fake_vllm.install(tmp_path / "vllm", release)))
    assert "--max-model-length 1" in parser_refusal(find_vllm(), ["MODEL", "--max-model-length", "1"])
    assert "--dtype: invalid choice: 'bf16'" in parser_refusal(find_vllm(), ["MODEL", "--dtype", "bf16"])
    assert parser_refusal(find_vllm(), ["MODEL", "--dtype", "half"]) == ""
    (tmp_path / "vllm" / "site" / "vllm" / "__init__.py").write_text("raise ImportError('libcuda.so.1')")
    with pytest.raises(AskError, match=r"libcuda\.so"):
        parser_refusal(find_vllm(), ["MODEL"])


def test_vllm_is_found_by_its_folder_or_its_program(monkeypatch, environment, tmp_path):
    for part in ("", "bin/vllm"):
        monkeypatch.setenv(VARIABLE, str(environment / part))
        assert (find_vllm().cli, find_vllm().versions["vllm"]) == (environment / "bin" / "vllm", "0.33.0")
    for missing, said in ((str(tmp_path), "no program"), ("", VARIABLE)):
        monkeypatch.setenv(VARIABLE, missing)
        with pytest.raises(PrerequisiteError, match=said) as error:
            find_vllm()
    assert "pip install vllm" in error.value.remedy


def test_vllm_s_variables_are_kept_but_its_key(monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert settings_of_environment() == {"VLLM_BATCH_INVARIANT": "1"}


def test_an_adapter_has_the_next_rank_that_vllm_knows_or_is_refused_with_the_way_out(tmp_path):
    for config, rank in (({"r": 8}, 8), ({"r": 9}, 16), ({"r": 8, "rank_pattern": {"q_proj": 40}}, 64)):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert adapter_rank(tmp_path) == rank
    for config in ({"r": 600}, {"r": 8, "use_dora": True}, {"r": 8, "modules_to_save": ["lm_head"]}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(SpecError) as error:
            adapter_rank(tmp_path)
        assert "--merge" in error.value.remedy


def test_one_server_holds_a_model_and_its_adapters(tmp_path):
    """Paths with '=', ',' and blanks among them: LoRA modules are JSON."""
    base = ModelSpec(name_or_path="/m")
    folders = [str(adapter_folder(tmp_path / name)) for name in ("a=b", "c, d")]
    adapted = [Checkpoint(name, base.model_copy(update={"adapter_name_or_path": name})) for name in folders]
    other = Checkpoint("other", ModelSpec(name_or_path="/n"))
    vllm = ServeSpec(backend="vllm")
    everything = [Checkpoint("base", base), *adapted]
    assert group_by_server(vllm, [*everything, other]) == [everything, [other]]
    for settings in (ServeSpec(), vllm.model_copy(update={"merge": True})):
        assert group_by_server(settings, everything) == [[each] for each in everything]
    named = {each.label: each for each in everything}
    program = Installation(tmp_path / "vllm", tmp_path / "python", None, {})
    how = Serving(vllm, tmp_path, 1), program, ChatPrompt("", (2,))
    plan = vllm_plan(named, {label: f"run@{label}" for label in named}, *how)
    given = fake_vllm.parser_of(fake_vllm.RELEASES[-1]).parse_args(plan.argv[2:])
    assert (given.max_loras, given.max_lora_rank, given.served_model_name) == (2, 8, ["run@base"])
    assert [json.loads(each)["path"] for each in given.lora_modules] == folders
    longer = replace(adapted[0], model=adapted[0].model.model_copy(update={"arguments": {"rope_scaling": "yarn"}}))
    with pytest.raises(SpecError, match="nothing of rope_scaling"):
        vllm_plan({"a": longer}, {"a": "a"}, *how)


def test_a_run_is_trained_by_one_and_benchmarked_by_the_other(trained_once):
    shop = trained_once
    calls, requests = shop.calls("serve"), shop.calls("request")
    assert shop.calls("api") == [] and shop.left_over() == []
    for call in calls:
        given = fake_vllm.parser_of("0.33.0").parse_args(call["argv"][2:])
        assert (given.host, given.max_model_len, given.dtype, given.seed) == ("127.0.0.1", 512, "auto", 0)
        assert given.enable_prefix_caching
        key = call["environment"]["VLLM_API_KEY"]
        assert len(key) > 20 and not any(key in word for word in call["argv"])
        assert key not in (shop.only_run() / "record.json").read_text()
    assert len(requests) == 12
    for each in requests:
        assert each["prompt"] == f"<|user|>{each['body']['messages'][0]['content']}<|assistant|>"
    sent = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sent.items() <= requests[0]["body"].items()
    record = shop.record()
    assert {item["of"] for item in record["benchmarks"]} == {"base", "output"}
    assert record["benchmarks"][0]["scores"] != record["benchmarks"][1]["scores"], "the adapter is asked, not the base"
    folder = next((shop.only_run() / "benchmarks").glob("output-*"))
    identity = json.loads((folder / "scores.json").read_bytes())["identity"]
    assert (identity["backend"], identity["versions"]["vllm"]) == ("vllm", "0.33.0")
    assert {"template": "smollm2", "VLLM_LOGGING_LEVEL": "INFO"}.items() <= identity["arguments"].items()


def test_merged_first_it_is_served_as_one_model_and_nothing_is_left_of_that(trained):
    done = trained.run("benchmark", "toy", "--backend", "vllm", "--merge", "--fresh")
    assert done.code == 0, done.err
    [call], [export] = trained.calls("serve"), trained.calls("export")
    assert call["argv"][2] == export["arguments"]["export_dir"]
    assert "--lora-modules" not in call["argv"]
    assert not list(trained.root.rglob("merged")) and trained.left_over() == []


def test_serve_ends_with_an_engine_that_would_stay_even_by_sigkill(trained):
    command = trained.start("serve", "toy", "--port", str(free_port()), FAKE_VLLM="engine-stays")
    command.until(lambda: "Ctrl-C ends it" in command.err, "the server")
    command.interrupt(signal.SIGKILL)
    command.finish()
    wait_for(lambda: not trained.processes(), "the end of all that was started")


def test_a_death_while_loading_is_told_at_once_with_what_to_do(trained):
    done = trained.run("benchmark", "toy", "--fresh", FAKE_VLLM="dies")
    assert done.code == 4 and fake_vllm.OUT_OF_MEMORY in done.err and "bin/vllm' serve" in done.err, done.err
    assert trained.left_over() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [({"differences": [["<s>a", "<s>b\x1b"]]}, r"<s>a.*<s>b\\x1b"), ({"vocabulary": 7}, "does not have")],
)
def test_a_prompt_that_cannot_be_had_is_refused(tmp_path, fake_cli, change, words):
    cli = fake_vllm.llamafactory(tmp_path / "bin", fake_cli, {**fake_vllm.PROMPT, **change})
    installation = Installation(cli, cli.parent / "python", None, None, {}, "3.11")
    with pytest.raises(StageError, match=f"(?s){words}"):
        chat_prompt({"model_name_or_path": "m", "template": "x"}, installation)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "before", "after"),
    [
        ({"template": "smollm2", "default_system": (text := "It's \\n {% x %}\r\n\\")}, f"system\n{text}", ""),
        ({"template": "qwen3", "enable_thinking": False}, "", "<think>\n\n</think>\n\n"),
    ],
)
def test_the_real_llamafactory_gives_the_prompt_of_its_training(tiny_model, arguments, before, after):
    """chat_prompt itself compares token ids with encode_oneturn, and refuses where they differ."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    found = chat_prompt({"model_name_or_path": str(tiny_model), **arguments}, find_installation())
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(found.chat_template)
    prompt = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    system = f"<|im_start|>{before}<|im_end|>\n" if before else ""
    assert prompt == f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{after}"
    assert found.stop_token_ids == (2,)
