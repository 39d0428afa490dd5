"""The JSON Schema of a spec: what editors make of it. Run: pytest tests/test_schema.py.

The test with a real language server installs yaml-language-server from npm into a temporary folder.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.errors import SpecError
from orchestrator.planning.schema import argument_schema, modeline, spec_schema
from orchestrator.planning.spec_file import load_spec
from orchestrator.specs.arguments import Argument
from orchestrator.specs.spec import OWNED
from orchestrator.specs.yamlfile import read_yaml
from orchestrator.upstream.chat_templates import read_templates
from orchestrator.upstream.installation import Installation

ROOT = Path(__file__).resolve().parent.parent
SPECS = sorted((ROOT / "runs").glob("*.yaml"))
SERVER = "yaml-language-server@2.0.0"


@pytest.fixture(scope="module")
def schema(arguments: dict[str, Argument], installation: Installation) -> dict[str, Any]:
    return spec_schema(arguments, read_templates(installation).names, "LLaMA-Factory 1.2.3")


def problems(schema: Mapping[str, Any], spec: object) -> list[str]:
    """Dotted paths of what an editor would underline."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(spec)
    return sorted(".".join(map(str, leaf.absolute_path)) for error in found for leaf in leaves(error))


def leaves(error: jsonschema.ValidationError) -> list[jsonschema.ValidationError]:
    """Of `section or null`, what is wrong within the section."""
    inner = [leaf for each in error.context or () for leaf in leaves(each) if leaf.validator_value != "null"]
    return inner or [error]


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    """Of the dialect that it names, with a title that says what it was made for; it can be written as JSON."""
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Run spec for LLaMA-Factory 1.2.3"
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize("path", SPECS, ids=[path.stem for path in SPECS])
def test_specs_that_load_are_accepted(path: Path, schema: dict[str, Any], arguments: dict[str, Argument]) -> None:
    """As they are written, and with every default written out."""
    spec = load_spec(path, (), arguments)
    assert problems(schema, read_yaml(path).value) == []
    assert problems(schema, spec.model_dump(mode="json")) == []


WRONG = {
    "a typo in train": ("train", {"lora_rnak": 8}, "train"),
    "a typo in model": ("model", {"tmplate": "qwen"}, "model"),
    "a section that is none": ("trian", {}, ""),
    "an argument that the run layer owns": ("train", {"output_dir": "x"}, "train"),
    "a training argument in serve": ("serve", {"learning_rate": 1.0}, "serve"),
    "a wrong choice": ("train", {"lr_scheduler_type": "cosin"}, "train.lr_scheduler_type"),
    "a wrong choice of our own": ("train", {"stage": "foo"}, "train.stage"),
    "text for a number": ("train", {"learning_rate": "5e-5"}, "train.learning_rate"),
    "text for a truth": ("train", {"plot_loss": "false"}, "train.plot_loss"),
    "a fraction for a count": ("train", {"cutoff_len": 1.5}, "train.cutoff_len"),
    "null for what has no null": ("train", {"cutoff_len": None}, "train.cutoff_len"),
    "a template that is none": ("model", {"template": "qwn"}, "model.template"),
    "a port that is none": ("serve", {"port": 0}, "serve.port"),
}


@pytest.mark.parametrize(("section", "change", "at"), WRONG.values(), ids=WRONG)
def test_what_a_spec_may_not_say_is_underlined(
    section: str,
    change: dict[str, Any],
    at: str,
    tmp_path: Path,
    schema: dict[str, Any],
    arguments: dict[str, Argument],
) -> None:
    """In the place where load_spec or check report it."""
    spec = copy.deepcopy(read_yaml(ROOT / "runs" / "demo.yaml").value)
    spec[section] = {**spec.get(section, {}), **change}
    assert problems(schema, spec) == [at]
    if section == "model" and "template" in change:
        return  # check's affair
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    with pytest.raises(SpecError):
        load_spec(tmp_path / "spec.yaml", (), arguments)


def test_every_argument_stands_where_it_may_with_help_and_default(
    schema: dict[str, Any], arguments: dict[str, Argument]
) -> None:
    """Arguments that the run layer owns are not proposed; our own fields keep our own words."""
    train = schema["$defs"]["TrainSpec"]["properties"]
    serve = schema["$defs"]["ServeSpec"]["properties"]
    allowed = {name for name in arguments if name not in OWNED}
    assert allowed <= set(train)
    assert {name for name in allowed if "api" in arguments[name].commands} <= set(serve)
    assert not set(OWNED) & set(train) and not set(OWNED) & (set(serve) - {"infer_backend"})
    assert train["lora_rank"] == {
        "description": arguments["lora_rank"].help,
        "type": "integer",
        "default": 8,
        "minimum": 1,
    }
    assert train["stage"]["description"] == "Training stage."
    for name in allowed - {"lora_target"}:
        jsonschema.validate(train[name].get("default"), {"anyOf": [train[name], {"type": "null"}]})


@pytest.mark.parametrize(
    ("kinds", "choices", "optional", "expected"),
    [
        ({"int"}, None, False, {"type": "integer"}),
        ({"int", "float"}, None, True, {"type": ["number", "null"]}),
        ({"str", "list"}, None, False, {"type": ["string", "array"]}),
        ({"bool", "dict"}, None, True, {"type": ["boolean", "object", "null"]}),
        ({"str"}, ("a", "b"), True, {"enum": ["a", "b", None]}),
        ({"int"}, (4, 8), False, {"enum": [4, 8]}),
        (set(), None, True, {}),
    ],
)
def test_an_argument_s_kinds_become_types(
    kinds: set[str], choices: tuple[Any, ...] | None, optional: bool, expected: dict[str, Any]
) -> None:
    """What is not known is not restricted; without a default that is known, none is shown."""
    assert argument_schema(Argument("x", frozenset(kinds), choices, optional, frozenset())) == expected


class LanguageServer:
    """A language server on a pipe: requests, answers, notifications (the base protocol of LSP)."""

    def __init__(self, argv: list[str]) -> None:
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number = 0

    def send(self, method: str, params: dict[str, Any], number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, **({"id": number} if number else {})}
        body = json.dumps(message).encode()
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.popen.stdin.flush()

    def read(self) -> dict[str, Any]:
        stream, length = self.popen.stdout, 0
        assert stream is not None
        while (line := stream.readline().strip()) or not length:
            assert line or self.popen.poll() is None, "the language server is gone"
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        message: dict[str, Any] = json.loads(stream.read(length))
        if "id" in message and "method" in message:  # it asks for settings: the defaults will do
            items = message["params"].get("items", [])
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": [{} for _ in items]}).encode()
            assert self.popen.stdin is not None
            self.popen.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self.popen.stdin.flush()
        return message

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        self.number += 1
        self.send(method, params, self.number)
        while (message := self.read()).get("id") != self.number or "method" in message:
            pass
        return message["result"]

    def diagnostics(self, uri: str) -> list[dict[str, Any]]:
        while (message := self.read()).get("method") != "textDocument/publishDiagnostics" or (
            message["params"]["uri"] != uri
        ):
            pass
        found: list[dict[str, Any]] = message["params"]["diagnostics"]
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    words = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--fetch-retries=0", SERVER]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {SERVER} within 120 s")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {SERVER}: {done.stderr.strip()[-300:]}")
    made = LanguageServer([str(folder / "node_modules" / ".bin" / "yaml-language-server"), "--stdio"])
    made.ask("initialize", {"processId": None, "rootUri": None, "capabilities": {}})
    made.send("initialized", {})
    yield made
    made.popen.kill()
    made.popen.communicate()


def opened(server: LanguageServer, path: Path, text: str) -> str:
    uri = path.as_uri()
    document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
    server.send("textDocument/didOpen", {"textDocument": document})
    return uri


@pytest.mark.integration
def test_a_real_language_server_completes_explains_and_underlines(
    server: LanguageServer, schema: dict[str, Any], tmp_path: Path
) -> None:
    """yaml-language-server, as VS Code and others run it, finds the schema by the file's first line."""
    (tmp_path / ".spec.schema.json").write_text(json.dumps(schema))
    head = f"{modeline('.spec.schema.json')}\nname: x\nmodel: {{name_or_path: a/b, template: qwen}}\ntrain:\n"
    uri = opened(server, tmp_path / "wrong.yaml", f"{head}  stage: foo\n  lora_rnak: 8\n  lora_rank: 4\n")
    found = server.diagnostics(uri)
    assert [each["range"]["start"]["line"] for each in found] == [4, 5], found
    assert "sft" in found[0]["message"] and "lora_rnak" in found[1]["message"]

    uri = opened(server, tmp_path / "right.yaml", f"{head}  lora_rank: 4\n  learning_rate: 1.0e-4\n")
    assert server.diagnostics(uri) == []
    at = {"textDocument": {"uri": uri}, "position": {"line": 4, "character": 4}}
    assert "intrinsic dimension" in json.dumps(server.ask("textDocument/hover", at))

    uri = opened(server, tmp_path / "begun.yaml", f"{head}  lora_ra\n")
    at = {"textDocument": {"uri": uri}, "position": {"line": 4, "character": 9}}
    labels = [each["label"] for each in server.ask("textDocument/completion", at)["items"]]
    assert "lora_rank" in labels
