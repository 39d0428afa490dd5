"""Kill processes of runs at random, go on with the runs, and count what was lost. Run: make chaos, or

    python -m tests.chaos --kills 200 --seed 1

Each run trains and is benchmarked with the fake llamafactory-cli. At a random moment one of its processes (the owner,
the trainer or server, the watcher, or all of them) gets SIGKILL, SIGTERM or SIGINT; then the run is looked at and gone
on with, until it is done. Figures: runs that came to the end of one that was never broken off, orphans, corrupt files,
wrong statuses.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.fake_llamafactory import install
from tests.workshop import Command, Workshop, new_workshop

TRAIN = {"max_steps": 12, "save_steps": 2}
BENCHMARK = [{"testset": "captions_en_de", "max_samples": 4, "n_bootstrap": 10}]
SLOW = {"FAKE_STEP_S": "0.15", "FAKE_TORN_S": "0.05"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("owner", "llamafactory", "watcher", "all")
LONGEST_S = 4.0  # of an attempt
SETTLE_S = 30
OURS = ("record.json", "spec.yaml", "train.yaml", "dataset_info.json", "api.yaml", "scores.json")


@dataclass
class Figures:
    """What was done, and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)
    """Statuses that runs had when they were hit."""
    runs: int = 0
    same_end: int = 0
    faults: list[str] = field(default_factory=list)
    """Orphans, corrupt files, wrong statuses, other ends: none is expected."""

    def lines(self) -> list[str]:
        kinds = Counter(fault.partition(":")[0] for fault in self.faults)
        named = ("orphans", "corrupt", "wrong status", "resume failed", "another end")
        return [
            f"{self.kills.total()} kills: {dict(self.kills)}",
            f"the runs were: {dict(self.at)}",
            f"{self.same_end} of {self.runs} runs came to the same end",
            ", ".join(f"{name}: {kinds[name]}" for name in named),
            *self.faults,
        ]


def chaos(place: Workshop, kills: int, seed: int, budget_s: float = 3600) -> Figures:
    """Hit runs so often, and see each to its end."""
    dice, figures = random.Random(seed), Figures()
    expected = _unbroken(place)
    deadline = time.monotonic() + budget_s
    while figures.kills.total() < kills and time.monotonic() < deadline:
        figures.runs += 1
        name = f"chaos-{figures.runs}"
        spec = place.spec(name, train=TRAIN, benchmark=BENCHMARK)
        folder = _run_to_the_end(place, name, spec, kills, dice, figures)
        if folder is None:
            continue
        if (found := outcome(folder)) == expected:
            figures.same_end += 1
        else:
            figures.faults.append(f"another end: {folder.name} {found} in place of {expected}")
    return figures


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run comes to."""
    record = json.loads((folder / "record.json").read_bytes())
    training = record["training"] or {}
    benchmarks = [folder / "benchmarks" / each["id"] for each in record["benchmarks"]]
    return {
        "status": record["status"],
        "weights": (folder / "output" / "adapter_model.safetensors").read_bytes().hex()[-16:],
        "steps": training.get("steps"),
        "losses": training.get("logged_losses"),
        "hypotheses": [(each / "hypotheses.txt").read_text("utf-8") for each in benchmarks],
    }


def _unbroken(place: Workshop) -> dict[str, Any]:
    done = place.run("launch", place.spec("unbroken", train=TRAIN, benchmark=BENCHMARK))
    assert done.code == 0, done.err
    return outcome(next(place.runs.glob("unbroken-*/")))


def _run_to_the_end(
    place: Workshop, name: str, spec: Path, kills: int, dice: random.Random, figures: Figures
) -> Path | None:
    """Launch, hit, go on, hit, ... until it is done; its folder."""
    words: tuple[str | Path, ...] = ("launch", spec)
    for _ in range(40):
        command = place.start(*words, *dice.choice([(), ("--detach",)]), **SLOW)
        if figures.kills.total() < kills:
            _hit(place, name, command, dice, figures)
        folder = next(place.runs.glob(f"{name}-*/"), None)
        _settle(place, command, figures)
        if folder is None or not (folder / "record.json").exists():
            continue  # killed before there was a run
        _look_at_files(folder, figures)
        status = place.run("show", folder.name, "--json").json()["status"]
        stored = json.loads((folder / "record.json").read_bytes())
        ended_in_order = stored["ended_at"] is not None
        if (status == "interrupted") == ended_in_order or status not in ("done", "failed", "stopped", "interrupted"):
            figures.faults.append(f"wrong status: {folder.name} {status}, stored {stored['status']}")
        if status == "done":
            return folder
        words = ("resume", folder.name)
    figures.faults.append(f"resume failed: {name} came to no end")
    return None


def _hit(place: Workshop, name: str, command: Command, dice: random.Random, figures: Figures) -> None:
    """A signal at a random moment to a process of the run, if there is such a one by then."""
    time.sleep(dice.uniform(0, LONGEST_S))
    number, target = dice.choice(SIGNALS), dice.choice(TARGETS)
    processes = place.processes()
    kinds = {id(process): _kind(process) for process in processes}
    hit = [each for each in processes if target == "all" or kinds[id(each)] == target]
    if not hit:
        return
    folder = next(place.runs.glob(f"{name}-*/record.json"), None)
    figures.at[json.loads(folder.read_bytes())["status"] if folder else "not there yet"] += 1
    figures.kills[f"{signal.Signals(number).name} {target}"] += 1
    for process in hit:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _kind(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    if "orchestrator.processes.watch" in words:
        return "watcher"
    return "owner" if "-m orchestrator" in words else "llamafactory"


def _settle(place: Workshop, command: Command, figures: Figures) -> None:
    """Until the attempt is over, its supervisor's too."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        if command.popen.poll() is not None and not place.processes():
            return
        time.sleep(0.05)
    figures.faults.append(f"orphans: {place.left_over()}")
    place.kill_all()


def _look_at_files(folder: Path, figures: Figures) -> None:
    for path in folder.rglob("*"):
        if path.name not in OURS or "output" in path.parts:
            continue
        try:
            value = yaml.safe_load(path.read_bytes()) if path.suffix == ".yaml" else json.loads(path.read_bytes())
            assert isinstance(value, dict)
        except (ValueError, yaml.YAMLError, AssertionError) as error:
            figures.faults.append(f"corrupt: {path}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        place = new_workshop(Path(folder), install(Path(folder) / "bin"))
        print(f"seed {arguments.seed}", flush=True)
        try:
            figures = chaos(place, arguments.kills, arguments.seed)
        finally:
            place.kill_all()
    print("\n".join(figures.lines()))
    sys.exit(bool(figures.faults))


if __name__ == "__main__":
    main()
