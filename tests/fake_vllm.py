"""A stand-in for vLLM: an environment of its own with a program `vllm`, whose `serve` is a real loopback server.

Flags are parsed as strictly as vLLM's argparse does, from tables that were read from its releases (tests/data/). The
model answers in capitals, an adapter with the source. FAKE_VLLM: dies (while it loads), engine-stays (at the end).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.openai_stub import completion, json_reply

RELEASES = ("0.11.0", "0.33.0")
ROOT = Path(__file__).parent.parent
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def table(release: str) -> list[dict[str, str]]:
    with (ROOT / "tests" / "data" / f"vllm_flags-{release}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def install(folder: Path, release: str = RELEASES[-1]) -> Path:
    """An environment with bin/python, bin/vllm and the package's sources; the folder, as ORCHESTRATOR_VLLM names it."""
    site, python, vllm = folder / "site", folder / "bin" / "python", folder / "bin" / "vllm"
    parser = "from argparse import ArgumentParser as FlexibleArgumentParser\n"
    utils = "__init__.py" if release == RELEASES[0] else "argparse_utils.py"
    files = {
        python: f'#!/bin/sh\nPYTHONPATH="{site}:{ROOT}" exec "{sys.executable}" "$@"\n',
        vllm: f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
        f"from tests.fake_vllm import main\nmain({release!r})\n",
        site / f"vllm-{release}.dist-info" / "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n",
        site / "vllm" / "__init__.py": "",
        site / "vllm" / "utils" / utils: parser,
        site / "vllm" / "entrypoints" / "openai" / "cli_args.py": "from tests.fake_vllm import add_flags\n\n\n"
        f"def make_arg_parser(parser):\n    print('INFO a line')\n    return add_flags(parser, {release!r})\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return folder


def parser_of(release: str) -> argparse.ArgumentParser:
    """As strict as vLLM's: unknown flags, wrong types and values outside the choices end it with status 2."""
    return add_flags(argparse.ArgumentParser(prog="vllm serve"), release)


def add_flags(parser: argparse.ArgumentParser, release: str) -> argparse.ArgumentParser:
    parser.allow_abbrev = False
    parser.add_argument("model_tag")
    styles = {
        "switch": {"action": "store_true"},
        "yes or no": {"action": argparse.BooleanOptionalAction},
        "several": {"nargs": "+"},
        "repeated": {"action": "append"},
        "json": {"type": json.loads},
    }
    for row in table(release):
        kind = {"int": int, "float": float, "dict": json.loads}.get(row["kinds"], str)
        choices = json.loads(row["choices"]) if row["choices"] else None
        keywords = styles.get(row["style"], {"type": kind, "choices": choices})
        parser.add_argument(f"--{row['name'].replace('_', '-')}", **keywords)
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
    server.models, server.template = _models(given), _template(given)
    config = json.loads(Path(given.generation_config, "generation_config.json").read_bytes())
    assert set(config) == {"eos_token_id"}, "a sampling parameter would be a hidden default"
    server.serve_forever(poll_interval=0.05)


def _models(given: argparse.Namespace) -> dict[str, bool]:
    """By name whether it is an adapter."""
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._admitted():
            json_reply({"data": [{"id": name, "owned_by": "vllm"} for name in self.server.models]})(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        prompt = self.server.template.render(messages=body["messages"], add_generation_prompt=True)
        with Path(os.environ["FAKE_CALLS"]).open("a", encoding="utf-8") as calls:
            calls.write(json.dumps({"argv": ["", "request"], "body": body, "prompt": prompt}) + "\n")
        source = body["messages"][-1]["content"].rpartition("\n")[2]
        completion(source if self.server.models[body["model"]] else source.upper(), body["model"])(self)

    def _admitted(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        json_reply({"error": "Unauthorized"}, 401)(self)
        return False

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
    answer, python, cli = folder / "prompt.json", folder / "python", folder / "llamafactory-cli"
    answer.write_text(json.dumps(prompt))
    others = fake_llamafactory.parent / "python"
    asked = f'case "$1" in */scripts/chat_prompt.py) exec cat "{answer}";; esac'
    python.write_text(f'#!/bin/sh\n{asked}\nexec "{others}" "$@"\n')
    lines = fake_llamafactory.read_text().split("\n", 3)
    cli.write_text(f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n{lines[3]}")
    for program in (python, cli):
        program.chmod(0o755)
    return cli
