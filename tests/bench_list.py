"""How long `orchestrator list` takes over many runs. Run: python tests/bench_list.py [RUNS]; 10000 unless told.

Makes that many run folders in a temporary folder, with records as long as real ones and two benchmarks each, and times
the real command: the first time, when every record is read, and then warm, when rows are remembered.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.runs_on_disk import benchmark, new_workspace, quiet, record_json  # noqa: E402

SPEC = 'name: "{name}"\nmodel:\n  name_or_path: "Qwen/Qwen2.5-{size}B"\n  template: "qwen"\ndataset: "{dataset}"\n'
WARM = 7
COMMANDS = (
    (), ("--sort", "bleu", "--limit", "20"), ("--status", "done", "--dataset", "multi*", "--since", "2026-06-01"),
    ("--limit", "20", "--json"), ("--json",),
)  # fmt: skip


def make_runs(root: Path, count: int) -> int:
    """The run folders; how many bytes the records have."""
    workspace = new_workspace(root)
    chance = random.Random(1)
    size = 0
    for number in range(count):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * number)
        name = chance.choice(["demo", "multi30k-en-de", "captions"])
        dataset = chance.choice(["captions", "multi30k"])
        folder = workspace.runs / f"{name}-{moment:%Y%m%d-%H%M%S}"
        folder.mkdir()
        scores = [benchmark(chance.uniform(0, 2), "base", dataset), benchmark(chance.uniform(2, 60), "output", dataset)]
        created, ended = f"{moment:%Y-%m-%dT%H:%M:%SZ}", f"{moment + timedelta(minutes=20):%Y-%m-%dT%H:%M:%SZ}"
        status = chance.choices(["done", "failed", "stopped"], [8, 1, 1])[0]
        fields = {"name": name, "created_at": created, "ended_at": ended, "status": status, "benchmarks": scores}
        text = json.dumps(record_json(folder.name, **fields), indent=2)
        size += len(text)
        (folder / "record.json").write_text(text)
        (folder / "spec.yaml").write_text(SPEC.format(name=name, size=chance.choice([3, 7]), dataset=dataset))
        (folder / "output").mkdir()
        if number % 10 == 0:
            (folder / "notes.json").write_text('{"schema_version": 1, "tags": ["baseline"], "notes": []}')
        quiet(folder)
    return size


def timed(root: Path, words: tuple[str, ...], **environment: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "orchestrator", "list", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    subprocess.run(command, cwd=root, env=variables, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "w", Path(folder) / "cache"
        size = make_runs(root, count)
        print(f"{count} runs, {size / count:.0f} bytes of record each")
        print(f"first time, every record read:   {timed(root, (), ORCHESTRATOR_CACHE=str(cache)):.2f} s")
        for words in COMMANDS:
            times = sorted(timed(root, words, ORCHESTRATOR_CACHE=str(cache)) for _ in range(WARM))
            shown = f"warm, list {' '.join(words)}".rstrip() + ":"
            print(f"{shown:<70} median {times[WARM // 2]:.2f} s, best {times[0]:.2f} s, worst {times[-1]:.2f} s")
        (Path(folder) / "file").write_text("")
        seconds = timed(root, (), ORCHESTRATOR_CACHE=str(Path(folder) / "file"))
        print(f"where nothing can be remembered: {seconds:.2f} s")


if __name__ == "__main__":
    main()
