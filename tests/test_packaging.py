"""The wheel works without the checkout. Run: pytest tests/test_packaging.py."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_carries_templates_and_datasets_and_needs_no_checkout(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shipped = {path.relative_to(ROOT) for name in ("templates", "dataset_info") for path in (ROOT / name).rglob("*.*")}
    assert all((tmp_path / "site" / "orchestrator" / path).is_file() for path in shipped) and len(shipped) >= 10
    workspace = tmp_path / "my work"
    (workspace / "model").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for words in (["init", "."], ["new", "toy", "--model", "./model"], ["show", "runs/toy.yaml", "--command"]):
        command = [sys.executable, "-m", "orchestrator", *words]
        done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llamafactory-cli train --model_name_or_path ")
    assert "--dataset captions_en_de" in done.stdout
