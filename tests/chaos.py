"""Kill processes of runs at random, resume the runs, and count what was lost. Run: make chaos, or

    python -m tests.chaos --kills 200 --seed 1

Each run trains and is benchmarked with the fake llamafactory-cli. At a random moment one of its processes (the owner,
the trainer or server, the watcher, or all of them) gets SIGKILL, SIGTERM or SIGINT; then the run is looked at and
resumed, until it is done. Faults: another end than that of a run that was never broken off, orphans, corrupt files,
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
from contextlib import suppress
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


kills: Counter[str] = Counter()
faults: list[str] = []
"""Orphans, corrupt files, wrong statuses, other ends: none is expected."""


def chaos(place: Workshop, wanted: int, dice: random.Random) -> None:
    """Hit runs so often, and see each to its end."""
    assert place.run("launch", place.spec("unbroken", train=TRAIN, benchmark=BENCHMARK)).code == 0
    expected = outcome(next(place.runs.glob("unbroken-*/")))
    runs = 0
    while kills.total() < wanted:
        runs += 1
        folder = _run_to_the_end(place, f"chaos-{runs}", wanted, dice)
        if folder is not None and (found := outcome(folder)) != expected:
            faults.append(f"another end: {folder.name} {found} in place of {expected}")
        print(f"{kills.total()} kills of {runs} runs, {len(faults)} faults", *faults[-1:], flush=True)
    print(f"{kills.total()} kills of {runs} runs: {dict(kills)}", f"{len(faults)} faults", *faults, sep="\n")


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


def _run_to_the_end(place: Workshop, name: str, wanted: int, dice: random.Random) -> Path | None:
    """Launch, hit, resume, hit, ... until it is done; its folder."""
    words: tuple[str | Path, ...] = ("launch", place.spec(name, train=TRAIN, benchmark=BENCHMARK))
    for _ in range(40):
        command = place.start(*words, *dice.choice([(), ("--detach",)]), **SLOW)
        if kills.total() < wanted:
            _hit(place, dice)
        folder = next(place.runs.glob(f"{name}-*/"), None)
        _settle(place, command)
        if folder is None or not (folder / "record.json").exists():
            continue  # killed before there was a run
        _look_at_files(folder)
        status = place.run("show", folder.name, "--json").json()["status"]
        stored = json.loads((folder / "record.json").read_bytes())
        has_ended = stored["ended_at"] is not None
        if (status == "interrupted") == has_ended or status not in ("done", "failed", "stopped", "interrupted"):
            faults.append(f"wrong status: {folder.name} {status}, stored {stored['status']}")
        if status == "done":
            return folder
        words = ("resume", folder.name)
    faults.append(f"resume failed: {name} came to no end")
    return None


def _hit(place: Workshop, dice: random.Random) -> None:
    """A signal at a random moment to a process of the run, if there is such a one by then."""
    time.sleep(dice.uniform(0, LONGEST_S))
    number, target = dice.choice(SIGNALS), dice.choice(TARGETS)
    if hit := [each for each in place.processes() if target in ("all", _kind(each))]:
        kills[f"{signal.Signals(number).name} {target}"] += 1
    for process in hit:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _kind(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    if "orchestrator.processes.watch" in words:
        return "watcher"
    return "owner" if "-m orchestrator" in words else "llamafactory"


def _settle(place: Workshop, command: Command) -> None:
    """Until the attempt is over, its supervisor's too."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        if command.popen.poll() is not None and not place.processes():
            return
        time.sleep(0.05)
    faults.append(f"orphans: {place.left_over()}")
    place.kill_all()


def _look_at_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name not in OURS or "output" in path.parts:
            continue
        try:
            value = yaml.safe_load(path.read_bytes()) if path.suffix == ".yaml" else json.loads(path.read_bytes())
            assert isinstance(value, dict)
        except (ValueError, yaml.YAMLError, AssertionError) as error:
            faults.append(f"corrupt: {path}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        place = new_workshop(Path(folder), install(Path(folder) / "bin"))
        try:
            chaos(place, arguments.kills, random.Random(arguments.seed))
        finally:
            place.kill_all()
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
