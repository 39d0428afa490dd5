"""A stand-in for vLLM: an environment of its own with a program `vllm`, whose `serve` is a real loopback server.

Flags are parsed as strictly as vLLM's argparse does, from tables that were read from its releases (tests/data/). GET
/v1/models lists the model and its LoRA modules; what is asked is rendered by the chat template. The model answers in
capitals, an adapter with the source.

FAKE_VLLM  dies (out of memory, while it loads) | engine-stays (when the server ends)
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RELEASES = ("0.11.0", "0.33.0")
TABLES = Path(__file__).parent / "data"
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def table(release: str) -> list[dict[str, str]]:
    with (TABLES / f"vllm_flags-{release}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def install(folder: Path, release: str = RELEASES[-1]) -> Path:
    """An environment with bin/python, bin/vllm and the package's sources; the folder, as ORCHESTRATOR_VLLM names it."""
    site, binaries = folder / "site", folder / "bin"
    binaries.mkdir(parents=True)
    info = site / f"vllm-{release}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")
    python = binaries / "python"
    root = Path(__file__).parent.parent
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}:{root}" exec "{sys.executable}" "$@"\n')
    vllm = binaries / "vllm"
    vllm.write_text(
        f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nfrom tests.fake_vllm import main\nmain({release!r})\n"
    )
    for program in (python, vllm):
        program.chmod(0o755)
    write_package(site / "vllm", release)
    return folder


def write_package(package: Path, release: str) -> None:
    """Where a release has its parser, one that takes the flags of that release's table."""
    is_old = release == RELEASES[0]
    files = {
        "__init__.py": "",
        "entrypoints/__init__.py": "",
        "entrypoints/openai/__init__.py": "",
        "entrypoints/openai/cli_args.py": f"from tests.fake_vllm import add_flags\n\n\ndef make_arg_parser(parser):\n"
        f"    print('INFO a line of its log')\n    return add_flags(parser, {release!r})\n",
        "utils/__init__.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n" if is_old else "",
        **(
            {}
            if is_old
            else {"utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n"}
        ),
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)


def _long(row: dict[str, str]) -> str:
    return f"--{row['name'].replace('_', '-')}"


def parser_of(release: str) -> argparse.ArgumentParser:
    """As strict as vLLM's: unknown flags, wrong types and values outside the choices end it with status 2."""
    return add_flags(argparse.ArgumentParser(prog="vllm serve"), release)


def add_flags(parser: argparse.ArgumentParser, release: str) -> argparse.ArgumentParser:
    parser.allow_abbrev = False
    parser.add_argument("model_tag")
    for row in table(release):
        style, kinds = row["style"], row["kinds"].split()
        types = {"int": int, "float": float, "dict": json.loads}
        kind = types.get(kinds[0], str) if len(kinds) == 1 else str
        if style == "switch":
            parser.add_argument(_long(row), action="store_true")
        elif style == "yes or no":
            parser.add_argument(_long(row), action=argparse.BooleanOptionalAction)
        elif style == "several":
            parser.add_argument(_long(row), nargs="+")
        elif style == "repeated":
            parser.add_argument(_long(row), action="append")
        else:
            choices = json.loads(row["choices"]) if row["choices"] else None
            parser.add_argument(_long(row), type=json.loads if style == "json" else kind, choices=choices)
    return parser


def main(release: str) -> None:
    assert sys.argv[1] == "serve", sys.argv
    call = {"argv": sys.argv, "environment": dict(os.environ), "cwd": str(Path.cwd())}
    with Path(os.environ["FAKE_CALLS"]).open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(call) + "\n")
    given = parser_of(release).parse_args(sys.argv[2:])
    print(f"fake vllm {release} serves {given.model_tag}", flush=True)
    mode = os.environ.get("FAKE_VLLM", "")
    # The engine has a process of its own, in a session of its own, and ends when the server is gone.
    engine = "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent:\n    time.sleep(0.02)"
    stays = "import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", stays if mode == "engine-stays" else engine], start_new_session=True)
    if mode == "dies":
        sys.exit(OUT_OF_MEMORY)
    server = ThreadingHTTPServer((given.host, given.port), _Handler)
    server.daemon_threads = True
    server.models, server.template, server.stops = _models(given), _template(given), _generation(given)
    server.serve_forever(poll_interval=0.05)


def _models(given: argparse.Namespace) -> dict[str, bool]:
    """What can be asked, and whether it is an adapter."""
    assert Path(given.model_tag, "config.json").is_file(), f"no model in {given.model_tag}"
    models = dict.fromkeys(given.served_model_name, False)
    for item in given.lora_modules or []:
        assert given.enable_lora, "--lora-modules without --enable-lora"
        module = json.loads(item)
        config = json.loads(Path(module["path"], "adapter_config.json").read_bytes())
        assert config["r"] <= given.max_lora_rank, f"LoRA rank {config['r']} is greater than max_lora_rank"
        assert module["name"] not in models, "two models of one name"
        models[module["name"]] = True
    return models


def _template(given: argparse.Namespace):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert given.chat_template_content_format == "string"
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(given.chat_template).read_text(encoding="utf-8"))


def _generation(given: argparse.Namespace) -> list[int]:
    config = json.loads(Path(given.generation_config, "generation_config.json").read_bytes())
    assert set(config) == {"eos_token_id"}, "a sampling parameter would be a hidden default"
    return config["eos_token_id"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._admitted():
            cards = [{"id": name, "object": "model", "owned_by": "vllm"} for name in self.server.models]
            self._json({"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        if body["model"] not in self.server.models:
            self._json({"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}, 404)
            return
        prompt = self.server.template.render(messages=body["messages"], add_generation_prompt=True)
        with Path(os.environ["FAKE_CALLS"]).open("a", encoding="utf-8") as calls:
            calls.write(json.dumps({"argv": ["", "request"], "body": body, "prompt": prompt}) + "\n")
        said = body["messages"][-1]["content"].rpartition("\n")[2]
        text = said if self.server.models[body["model"]] else said.upper()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._json({**about, "choices": [choice], "usage": usage})

    def _admitted(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self._json({"error": "Unauthorized"}, 401)
        return False

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


# LLaMA-Factory's Python, where only its answer about the prompt is a stand-in: the real one takes 10 s.
PROMPT = {
    "chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>",
    "stop_token_ids": [2, 7],
    "vocabulary": 600,
    "differences": [],
}


def llamafactory(folder: Path, fake_llamafactory: Path, prompt: dict = PROMPT) -> Path:
    """A llamafactory-cli as tests/fake_llamafactory.py, whose Python tells a prompt at once."""
    folder.mkdir(parents=True)
    answer = folder / "prompt.json"
    answer.write_text(json.dumps(prompt))
    python = folder / "python"
    others = fake_llamafactory.parent / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in */scripts/chat_prompt.py) exec cat "{answer}";; esac\nexec "{others}" "$@"\n'
    )
    cli = folder / "llamafactory-cli"
    lines = fake_llamafactory.read_text().split("\n", 3)
    cli.write_text(f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n{lines[3]}")
    for program in (python, cli):
        program.chmod(0o755)
    return cli
