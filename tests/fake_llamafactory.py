"""A llamafactory-cli with nothing inside: it reads the rendered YAML, leaves what the real one leaves, fails on demand.

Installed by `install` as an executable that the Python of the tests runs, so that LLaMA-Factory's arguments and
templates are found beside it; but what LLaMA-Factory's parser and loader are asked is answered by "nothing is wrong".
What was asked of it, its API key included, goes to the file of FAKE_CALLS.

FAKE_ANSWER a file with another answer of scripts/check_arguments.py

FAKE_TRAIN  dies | silent (status 0, no results) | hangs (before the first step)
            | stubborn (ignores SIGTERM)
            | torn-checkpoint (killed by itself while it saves its second one)
            | unsaved (killed by itself between its last checkpoint and the final save)
FAKE_STEP_S seconds that a step takes
FAKE_HOLD   the step after which it waits until it is told to stop, or until the file FAKE_GO is there
FAKE_TORN_S seconds that some lines of the log stand there by half
FAKE_API    dies | never (is ready) | late-death (after two answers) | hangs (gives no answer)
            | 500 | 401 | other (lists another model)
FAKE_EXPORT dies | truncated | hangs
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import openai_stub

REFUSED = openai_stub.json_reply({"detail": "Invalid API key."}, 401)
STEPS = 5
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def first_lines(python: str | Path = sys.executable) -> str:
    """The beginning of a script that a Python runs, as pip writes it: '#!' alone ends at a blank in the path."""
    return f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"


def install(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cli, python = folder / "llamafactory-cli", folder / "python"
    python.write_text(f"""#!/bin/sh
case "$1" in
*/scripts/check_arguments.py)
  cat > /dev/null
  echo '{{"argv": ["", "check_arguments"]}}' >> "${{FAKE_CALLS:-/dev/null}}"
  answer="{folder}/answer.json"
  exec cat "${{FAKE_ANSWER:-$answer}}";;
esac
exec "{sys.executable}" "$@"
""")
    (folder / "answer.json").write_text('{"problems": [], "datasets": []}')
    python.chmod(0o755)
    cli.write_text(f"{first_lines(python)}import runpy\nrunpy.run_path({str(Path(__file__))!r}, run_name='__main__')\n")
    cli.chmod(0o755)
    return cli


def main() -> None:
    import yaml

    command, file = sys.argv[1:]
    arguments = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    call = {"argv": sys.argv, "arguments": arguments, "environment": dict(os.environ), "cwd": str(Path.cwd())}
    with Path(os.environ["FAKE_CALLS"]).open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(call) + "\n")
    print(f"fake {command} of {arguments['model_name_or_path']}", flush=True)
    {"train": train, "api": api, "export": export}[command](arguments)


def train(arguments: dict) -> None:
    mode = os.environ.get("FAKE_TRAIN", "")
    info = json.loads((Path(arguments["dataset_dir"]) / "dataset_info.json").read_text("ascii"))
    seed = arguments["seed"]
    for name in arguments["dataset"].split(","):
        rows = Path(arguments["dataset_dir"], info[name]["file_name"]).read_text("ascii").splitlines()
        columns = info[name]["columns"].values()
        seed += sum(len(json.loads(row)[column]) for row in rows for column in columns)
    if mode == "hangs":
        signal.pause()
    if mode == "dies":
        print(*(f"a line of the log, number {number}" for number in range(40)), sep="\n", flush=True)
        sys.exit(f"\x1b[31m{OUT_OF_MEMORY}\x1b[0m")
    if mode == "silent":
        return
    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.append(number))
    if mode == "stubborn":
        asked_to_stop = None
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # SIG_IGN would be the worker's too
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as a data loader's worker

    if os.environ.get("NODE_RANK", "0") != "0":  # as the real one: only the main process of the first node saves
        for _ in range(arguments.get("max_steps") or STEPS):
            if not asked_to_stop:
                time.sleep(float(os.environ.get("FAKE_STEP_S", "0.01")))
        return
    output = Path(arguments["output_dir"])
    output.mkdir(exist_ok=True)
    total, step, losses = arguments.get("max_steps") or STEPS, 0, []
    if resumed := _resume_from(arguments, output):
        state = json.loads((resumed / "trainer_state.json").read_text())
        assert (resumed / "optimizer.pt").is_file()
        step, losses = state["global_step"], [event["loss"] for event in state["log_history"]]
        print(f"resumed from {resumed} at step {step}", flush=True)
    began, saved, last = step, 0, max(total, step + 1)  # as transformers: one step, then it looks at max_steps
    hold, go = int(os.environ.get("FAKE_HOLD", -1)), Path(os.environ.get("FAKE_GO", "never"))
    with (output / "trainer_log.jsonl").open("a", encoding="utf-8") as log:
        while step < last and not asked_to_stop:
            if step == hold and not go.exists():
                time.sleep(0.01)
                continue
            time.sleep(float(os.environ.get("FAKE_STEP_S", "0.01")))
            step += 1
            losses.append(seed % 977 / 100 / step)
            line = {"current_steps": step, "total_steps": total, "loss": losses[-1], "lr": 1e-4, "throughput": 150.08}
            torn_s = float(os.environ.get("FAKE_TORN_S", "0.01")) if step in (2, total) else 0
            _append(log, json.dumps({**line, "elapsed_time": "0:00:01", "remaining_time": "0:00:09"}), torn_s)
            if step % arguments.get("save_steps", total + 1) == 0 and step < total:
                saved += 1
                _checkpoint(output, arguments, seed, losses, total, torn=mode == "torn-checkpoint" and saved == 2)
        if not asked_to_stop:
            _append(log, json.dumps({"current_steps": step, "total_steps": total, "percentage": 100.0}))
    if asked_to_stop:
        print(f"Saving JIT checkpoint at step {step}", flush=True)
    _checkpoint(output, arguments, seed, losses, total)
    if mode == "unsaved":
        os.kill(os.getpid(), signal.SIGKILL)
    _save(output, arguments, seed, losses)
    # As transformers: the losses since the resume over all steps.
    results = {"train_loss": sum(losses[began:]) / max(step, 1), "train_runtime": 1.5}
    (output / "train_results.json").write_text(json.dumps({**results, "num_input_tokens_seen": 100 * step}))
    (output / "trainer_state.json").write_text(json.dumps(_state(losses, total)))
    if arguments.get("do_eval"):
        (output / "eval_results.json").write_text(json.dumps({"eval_loss": 1.5}))


def _resume_from(arguments: dict, output: Path) -> Path | None:
    """What it is told, or what lies there, whole or not: as LLaMA-Factory's hparams/parser.py."""
    if arguments.get("resume_from_checkpoint"):
        return Path(arguments["resume_from_checkpoint"])
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else None


def _state(losses: list, total: int) -> dict:
    history = [{"loss": loss, "step": step} for step, loss in enumerate(losses, start=1)]
    tokens = {"num_input_tokens_seen": 100 * len(losses)}
    return {"global_step": len(losses), "max_steps": total, "log_history": history, **tokens}


def _checkpoint(output: Path, arguments: dict, seed: int, losses: list, total: int, *, torn: bool = False) -> None:
    folder = output / f"checkpoint-{len(losses)}"
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint-is-incomplete.txt").write_text("in progress")
    _save(folder, arguments, seed, losses)
    if torn:
        os.kill(os.getpid(), signal.SIGKILL)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(folder / name, "w") as archive:  # as torch.save's
            archive.writestr("archive/data.pkl", "x")
    (folder / "trainer_state.json").write_text(json.dumps(_state(losses, total)))
    (folder / "checkpoint-is-incomplete.txt").unlink()


def _append(log, line: str, torn_s: float = 0) -> None:
    """Write a line, for some seconds only the first half of it."""
    half = len(line) // 2
    for part in (line[:half], line[half:] + "\n"):
        log.write(part)
        log.flush()
        time.sleep(torn_s if part == line[:half] else 0)


def _save(folder: Path, arguments: dict, seed: int, losses: list) -> None:
    """Weights that depend on every step that led to them."""
    from tests.model_folders import adapter_folder, model_folder  # not in a server, which starts in no time

    kind = {"lora": adapter_folder, "full": model_folder}[arguments["finetuning_type"]]
    with tempfile.TemporaryDirectory() as parent:
        shutil.copytree(kind(Path(parent, "made")), folder, dirs_exist_ok=True)
    weights = next(folder.glob("*.safetensors"))
    content = weights.read_bytes()
    seed += zlib.crc32(json.dumps(losses).encode())
    weights.write_bytes(content[:-4] + (seed % 2**32).to_bytes(4, "little"))
    if kind is adapter_folder:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = arguments["model_name_or_path"]
        (folder / "adapter_config.json").write_text(json.dumps(config))


def export(arguments: dict) -> None:
    mode = os.environ.get("FAKE_EXPORT", "")
    folder = Path(arguments["export_dir"])
    adapter = arguments.get("adapter_name_or_path")
    assert adapter is None or (Path(adapter) / "adapter_config.json").is_file()
    if mode == "dies":
        sys.exit(OUT_OF_MEMORY)
    shutil.copytree(arguments["model_name_or_path"], folder, dirs_exist_ok=True)
    if mode == "hangs":
        signal.pause()
    if mode == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-5])


def api(arguments: dict) -> None:
    mode = os.environ.get("FAKE_API", "")
    assert not {"do_train", "output_dir", "dataset"} & set(arguments), "training arguments are refused"
    assert Path(arguments["model_name_or_path"], "config.json").is_file()
    if mode == "dies":
        sys.exit(OUT_OF_MEMORY)
    if mode == "never":
        signal.pause()
    server = ThreadingHTTPServer((os.environ["API_HOST"], int(os.environ["API_PORT"])), _Handler)
    server.daemon_threads = True
    server.mode, server.answered, server.sent, server.lock = mode, 0, 0, threading.Lock()
    server.adapted = "adapter_name_or_path" in arguments
    server.serve_forever(poll_interval=0.05)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._is_admitted():
            name = "another" if self.server.mode == "other" else os.environ["API_MODEL_NAME"]
            openai_stub.json_reply({"object": "list", "data": [{"id": name, "object": "model"}]})(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_admitted():
            return None
        mode = self.server.mode
        with self.server.lock:
            self.server.answered += 1
            number = self.server.answered
        if mode == "late-death" and number > 2:
            while self.server.sent < 2:
                time.sleep(0.01)
            print("Segmentation fault", flush=True)
            os._exit(9)
        if mode == "hangs":
            print("asked", flush=True)
            signal.sigwait([signal.SIGUSR1])
        if mode == "500":
            return openai_stub.raw(b"Internal Server Error", 500)(self)
        if mode == "401":
            return REFUSED(self)
        text = body["messages"][-1]["content"].rpartition("\n")[2]
        text = text if self.server.adapted else text.upper()
        if body.get("stream"):
            return self._stream(f"({len(body['messages'])}) {text}")
        openai_stub.completion(text, model=body["model"])(self)
        with self.server.lock:
            self.server.sent += 1

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        pieces = [{"role": "assistant"}, *({"content": f"{word} "} for word in text.split(" ")), {}]
        for piece in pieces:
            chunk = {"id": "chatcmpl-1", "model": "fake", "choices": [{"index": 0, "delta": piece}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _is_admitted(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {os.environ['API_KEY']}":
            return True
        return REFUSED(self) is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    main()
