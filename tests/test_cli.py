"""The command line as a user meets it: errors, targets, serve, chat, export; with a fake llamafactory-cli."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.processes.ports import free_port
from orchestrator.runs.rundir import RunDir
from tests import openai_stub
from tests.fake_llamafactory import OUT_OF_MEMORY
from tests.workshop import wait_for

BENCHMARK_ONLY = {"train": None, "dataset": None}
QUICK = ("--testset", "captions_en_de", "--max-samples", "3")


ERRORS = {
    "none": (2, ["runs/none.yaml: no such file"]),
    "data": (2, ["dataset: no dataset 'captoins_en_de'; did you mean 'captions_en_de'?", "known datasets: "]),
    "cut": (3, ["model.name_or_path: ", "models/cut/model.safetensors", "733"]),
    "wrong": (2, [
        "has 3 errors", "\nerror: modle: unknown field\n  --> runs/wrong.yaml:2:1\n",
        " 2 | modle: {name_or_path: x}\n   | ^^^^^\n   = help: did you mean 'model'?\n",
        "\n  --> runs/wrong.yaml:6:3\n", "did you mean 'lora_rank'?",
        "\nerror: train.output_dir: output_dir is managed by orchestrator",
    ]),
}  # fmt: skip


def test_errors_are_shown_all_at_once_before_anything_starts(workshop):
    cut = shutil.copytree(workshop.root / "models" / "tiny", workshop.root / "models" / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-7])
    workshop.spec("data", dataset="captoins_en_de")
    workshop.spec("cut", model={"name_or_path": "models/cut"})
    (workshop.runs / "wrong.yaml").write_text(
        "name: toy\nmodle: {name_or_path: x}\nmodel: {name_or_path: models/tiny}\ndataset: captions_en_de\n"
        "train:\n  lora_rnak: 8\n  output_dir: there\n"
    )
    results = workshop.run_together([("launch", f"runs/{name}.yaml") for name in ERRORS])
    for (code, fragments), done in zip(ERRORS.values(), results, strict=True):
        assert (done.code, done.out) == (code, "") and done.err.startswith("error: "), done.err
        assert [fragment for fragment in fragments if fragment not in done.err] == [], done.err
    assert workshop.run_folders() == [] and workshop.calls("train") == []


def test_a_taken_port_is_found_before_a_model_is_loaded(workshop):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        done = workshop.run("serve", "models/tiny", "--port", port := str(holder.getsockname()[1]))
    assert done.code == 3 and port in done.err and "  try: stop the program that listens there" in done.err
    assert workshop.calls("api") == []


def test_a_wrong_command_line_is_exit_code_2(workshop):
    workshop.spec()
    cases = {
        ("launch", "runs/toy.yaml", "--sett", "a=1"): "No such option",
        ("launch", "runs/toy.yaml", "--set", "seed"): "expected KEY=VALUE",
        ("stop", "toy", "--now", "--grace", "1"): "exclude each other",
        ("benchmark", "x" * 300): "is none of these: a run, RUN@checkpoint-N",
        ("serve", "http://127.0.0.1:9/v1", "--template", "qwen"): "--template is for a model that is served here",
        ("show", "runs/toy.yaml", "--file", "train.yaml", "--json"): "--json is for",
        ("serve", "models/tiny", "--merge"): "merge is for backend vllm",
        ("list", "--workspace", "models"): "no workspace: ",
    }
    for message, done in zip(cases.values(), workshop.run_together(cases), strict=True):
        assert (done.code, done.out) == (2, "") and message in done.err and "Traceback" not in done.err, done


def test_outside_a_workspace_the_next_step_is_shown_and_another_folder_will_do(workshop, tmp_path):
    done = workshop.run("list", cwd=tmp_path)
    assert done.code == 2 and "no workspace: " in done.err and "orchestrator init" in done.err
    assert workshop.run("init", "new one", cwd=tmp_path).code == 0
    assert workshop.run("list", "--json", cwd=tmp_path / "new one" / "runs").json() == []
    (tmp_path / "file").write_text("")
    done = workshop.run("init", "file", cwd=tmp_path)
    assert done.code == 3 and "file/runs: Not a directory" in done.err
    words = ("check", workshop.spec(), "--fast")
    for given, variable in ((("--workspace", workshop.root), None), ((), str(workshop.root))):
        done = workshop.run(*words, *given, cwd=tmp_path, ORCHESTRATOR_WORKSPACE=variable)
        assert done.code == 0 and "no errors" in done.err, done.err


def test_check_shows_its_own_remarks_before_it_asks_llamafactory(workshop):
    done = workshop.run("check", workshop.spec(model={"template": None}))
    assert done.code == 0 and done.err.index("warning: model.template: ") < done.err.index("asking LLaMA-Factory")


def one_document(done):
    """The document on stdout, which must hold nothing else."""
    assert done.code == 0 and done.out[-1] == "\n", done
    return done.json()


def test_json_is_one_document_on_stdout_and_nothing_else(toy):
    past = toy.only_run()
    record = {**toy.record(past), "tags": [], "notes": [], "removed": False}
    command = "llamafactory-cli train --do_train true --model_name_or_path m/m --output_dir x"
    words = [
        ("list",), ("show", "toy"), ("show", "runs/toy.yaml"), ("check", "runs/toy.yaml", "--fast"),
        ("launch", "runs/toy.yaml", "--dry-run", "--set", "seed=42"), ("import", "--dry-run", command),
    ]  # fmt: skip
    listed, run, spec, check, dry, imported = (
        one_document(done) for done in toy.run_together([(*each, "--json") for each in words])
    )
    assert (listed, run, spec["seed"], sorted(check)) == ([record], record, 42, ["datasets", "findings"])
    assert dry[0]["set"] == ["seed=42"] and dry[0]["command"].startswith("llamafactory-cli train ")
    assert sorted(imported) == ["datasets", "notes", "spec"] and imported["spec"].startswith("#")
    words = [("benchmark", past.name, *QUICK, "--json"), ("rerun", past.name, "--no-benchmark", "--json")]
    (scores,), again = (one_document(done) for done in toy.run_together(words))
    assert (scores["status"], scores["n_segments"]) == ("complete", 3)
    assert (again["rerun_of"], again["status"]) == (past.name, "done")
    lost = {"name_or_path": "models/none", "template": "lama3"}  # without a model LLaMA-Factory can't be asked
    failed = toy.run("check", toy.spec(model=lost, dataset="captoins_en_de"), "--json")
    errors = [finding["field"] for finding in failed.json()["findings"] if finding["severity"] == "error"]
    assert (failed.code, sorted(errors)) == (2, ["dataset", "model.name_or_path", "model.template"])


def test_show_prints_files_of_a_run_as_they_are_and_of_a_spec_what_a_launch_would_write(launched):
    workshop, _ = launched
    words = [("--command",), ("--file", "train.yaml"), ("--file", "dataset_info.json"), ("--file", "spec.yaml")]
    names = ["command.txt", *(each[-1] for each in words[1:])]
    shown = workshop.run_together([("show", what, *each) for what in ("toy", "runs/toy.yaml") for each in words])
    assert [done.out for done in shown] == [(workshop.only_run() / name).read_text("utf-8") for name in names] * 2
    missing = workshop.run("show", "toy", "--file", "trian.yaml")
    assert missing.code == 2 and "did you mean 'train.yaml'?" in missing.err
    assert "it has: api.yaml, command.txt," in missing.err  # and neither locks nor what is being written


def test_a_reader_that_goes_away_is_no_traceback(launched):
    workshop, _ = launched
    pipe, write = os.pipe()
    os.close(pipe)
    argv, env = [sys.executable, "-m", "orchestrator", "list"], workshop.full_environment({})
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True, cwd=workshop.root, env=env, timeout=60)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def test_a_terminal_gets_a_bar_and_its_hang_up_ends_the_training_with_a_checkpoint(workshop):
    spec = workshop.spec(train={"max_steps": 100_000})
    with workshop.on_terminal("launch", spec, FAKE_STEP_S="0.05", COLUMNS="140") as terminal:
        bar = r"train: .*/100000 \[.*steps.*loss=.*lr=.*tokens/s=150\.1.*left="
        wait_for(lambda: re.search(bar, terminal.read()), "the bar")
        terminal.hang_up()
        terminal.popen.wait(60)
    assert workshop.record()["status"] == "stopped" and workshop.left_over() == []
    assert RunDir(workshop.only_run()).checkpoints()


def served(workshop):
    keys = ("model_name_or_path", "adapter_name_or_path", "template")
    return [tuple(map(call["arguments"].get, keys)) for call in workshop.calls("api")]


def test_every_kind_of_target_serves_its_own_files_with_its_own_template(toy, tmp_path):
    run, tiny = toy.only_run(), str(toy.root / "models" / "tiny")
    foreign = tmp_path / "somebody's adapter"
    shutil.copytree(run / "output", foreign)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": tiny}))
    targets = {
        ("toy",): (tiny, str(run / "output"), "smollm2"),
        ("toy@base",): (tiny, None, "smollm2"),
        (str(run / "output" / "checkpoint-5"),): (tiny, str(run / "output" / "checkpoint-5"), "smollm2"),
        (str(foreign), "--template", "qwen"): (tiny, str(foreign), "qwen"),
        ("models/tiny",): (tiny, None, None),
    }
    refused = toy.start("benchmark", "toy", *QUICK, "--template", "qwen")
    for done in toy.run_together([("benchmark", *words, *QUICK) for words in targets]):
        assert done.code == 0 and "3 segments" in done.out and "BLEU: nrefs:1|" in done.out, done.err
    assert sorted(served(toy), key=str) == sorted(targets.values(), key=str)
    assert refused.finish().code == 2 and "was trained with template smollm2, not qwen" in refused.err
    # three of them at once have written into one record
    ours = sorted(each["of"] for each in toy.record(run)["benchmarks"])
    assert ours == ["base", "base", "checkpoint-5", "output", "output"]
    assert [toy.record(folder)["status"] for folder in toy.run_folders()] == ["done"] * 3


def test_a_runs_devices_are_those_of_its_benchmarks_and_its_server_too(workshop):
    assert workshop.run("launch", workshop.spec(compute={"devices": "3"})).code == 0
    assert workshop.run("benchmark", "toy", *QUICK, "--fresh", "--devices", "1").code == 0
    devices = [call["environment"]["CUDA_VISIBLE_DEVICES"] for call in workshop.calls("api")]
    assert devices == ["3", "1"]


def test_a_server_of_others_is_benchmarked_by_url_without_llamafactory(workshop, tmp_path):
    with openai_stub.serving() as stub:
        environment = {"ORCHESTRATOR_LLAMAFACTORY": str(tmp_path / "nowhere"), "ORCHESTRATOR_API_KEY": "sk-secret"}
        spec = workshop.spec("remote", **BENCHMARK_ONLY, model=None, serve={"url": stub.base_url})
        dry = workshop.run("launch", spec, "--dry-run", **environment)
        assert (dry.code, dry.out) == (0, "") and "nothing was started" in dry.err
        for done in workshop.run_together([("benchmark", stub.base_url, *QUICK), ("launch", spec)], **environment):
            assert done.code == 0 and "sk-secret" not in done.out + done.err, done.err
        assert {headers["authorization"] for headers in stub.headers} == {"Bearer sk-secret"}
        assert {body["model"] for body in stub.bodies} == {"stub"}
    for record in map(workshop.record, workshop.run_folders()):
        assert (record["status"], record["benchmarks"][0]["of"]) == ("done", "server")
    for path in workshop.runs.rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_serve_prints_a_line_that_works_as_printed_and_ends_with_ctrl_c(toy, tmp_path):
    port = free_port()
    command = toy.start("serve", "toy", "--port", str(port), TMPDIR=str(tmp_path))
    command.until(lambda: "Ctrl-C" in command.err, "ready")
    (curl,) = command.out.splitlines()
    environment = toy.full_environment({})
    if shutil.which("curl"):
        asked = subprocess.run(["sh", "-c", curl], env=environment, capture_output=True, text=True, timeout=60)
        assert json.loads(asked.stdout)["choices"][0]["message"]["content"] == "Hello!", asked
    model = json.loads(shlex.split(curl)[-1])["model"]
    assert re.fullmatch(rf"{toy.only_run().name}:[0-9a-f]{{12}}", model)
    command.interrupt(signal.SIGINT)
    assert command.finish().code == 130 and toy.left_over() == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("orchestrator")] == []


def test_a_server_that_fails_leaves_its_log_and_one_that_dies_while_it_serves_is_an_error(toy, tmp_path):
    done = toy.run("serve", "toy", "--port", str(free_port()), FAKE_API="dies", TMPDIR=str(tmp_path))
    assert done.code == 4 and OUT_OF_MEMORY in done.err and "by hand: " in done.err
    assert OUT_OF_MEMORY in Path(re.search(r"Last lines of (.*):", done.err)[1]).read_text()
    command = toy.start("serve", "toy", "--port", str(free_port()))
    command.until(lambda: "Ctrl-C" in command.err, "ready")
    (server,) = toy.children(command)
    server.kill()
    done = command.finish()
    assert done.code == 4 and "the server ended with status -9" in done.err


def start_talk(workshop, *words, text, **environment):
    """A chat whose input comes from a file, all at once."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        return workshop.start("chat", *words, stdin=file, **environment)


def test_serve_takes_the_key_that_is_given_and_chat_by_url_needs_it(toy):
    command = toy.start("serve", "toy", "--port", str(port := free_port()), ORCHESTRATOR_API_KEY="sk-of-mine")
    command.until(lambda: "Ctrl-C" in command.err, "ready")
    url = f"http://127.0.0.1:{port}/v1"
    words = (url, "--system", "Be brief.")
    talks = [start_talk(toy, *words, text="hello\n", ORCHESTRATOR_API_KEY=key) for key in ("sk-of-mine", None)]
    done, refused = (talk.finish() for talk in talks)
    assert done.code == 0 and "(2) hello" in done.out, done  # two messages: the system's and the user's
    assert refused.code == 3 and "set ORCHESTRATOR_API_KEY" in refused.err
    command.interrupt(signal.SIGTERM)
    assert command.finish().code == 130 and "error" not in command.err


def test_ctrl_c_in_a_chat_stops_the_answer_only_and_sigterm_ends_the_chat(toy):
    command = start_talk(toy, "toy", text="hello\nand then?\n", FAKE_API="hangs", TMPDIR=str(toy.root.parent))
    logs = toy.root.parent.glob

    def n_asked():
        return sum(path.read_text().count("asked") for path in logs("orchestrator-*/api.log"))

    command.until(lambda: n_asked() == 1, "a request")
    command.interrupt(signal.SIGINT)
    command.until(lambda: "[stopped]" in command.out and n_asked() == 2, "the next request")
    command.interrupt(signal.SIGTERM)
    done = command.finish()
    assert (done.code, done.err.splitlines()[-1], toy.left_over()) == (130, "error: stopped by SIGTERM", [])


def test_an_exported_model_is_taken_like_any_other(toy, tmp_path):
    run = toy.only_run()
    elsewhere = tmp_path / "taken 'elsewhere'"
    here, there = toy.run("export", "toy"), toy.run("export", "toy@checkpoint-5", "--to", elsewhere, "--json")
    assert (here.code, here.out) == (0, f"{run / 'export'}\n"), here.err
    assert one_document(there) == {"folder": str(elsewhere)}
    adapters = [call["arguments"]["adapter_name_or_path"] for call in toy.calls("export")]
    assert adapters == [str(run / "output"), str(run / "output" / "checkpoint-5")]
    assert toy.run("benchmark", elsewhere, *QUICK).code == 0
    assert served(toy) == [(str(elsewhere), None, "smollm2")]
    assert toy.record(run)["commands"]["export"] == [str(toy.cli), "export", "export.yaml"]


def test_an_export_overwrites_nothing_and_needs_an_adapter(toy, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    words = [("export", "toy", "--to", tmp_path / "full"), ("export", "toy@base"), ("export", "models/tiny")]
    full, base, folder = toy.run_together(words)
    assert full.code == 2 and "not empty" in full.err and "--to DIR" in full.err
    assert base.code == 2 and "full model already" in base.err
    assert folder.code == 2 and "belongs to no run" in folder.err
    assert toy.calls("export") == []


def test_the_model_of_a_spec_that_trains_nothing_is_exported_and_served(toy, tmp_path):
    spec = tmp_path / "merge me.yaml"
    model = "name: merge\nmodel: {name_or_path: models/tiny, template: default}\n"
    spec.write_text(f"{model}serve: {{max_new_tokens: 7}}\nexport: {{export_dir: merged, export_size: 2}}\n")
    done = toy.run("export", spec)
    assert (done.code, done.out) == (0, f"{toy.root / 'merged'}\n"), done.err
    (call,) = toy.calls("export")
    assert call["arguments"]["export_size"] == 2 and call["arguments"]["template"] == "default"
    (run,) = [path for path in toy.run_folders() if path.name.startswith("merge-")]
    record = toy.record(run)
    assert (record["status"], record["commands"]["export"][1:]) == ("done", ["export", "export.yaml"])
    assert toy.run("chat", spec).code == 0  # no stdin: it ends at once
    assert toy.calls("api")[-1]["arguments"]["max_new_tokens"] == 7
    refused = toy.run("launch", spec)
    assert refused.code == 2 and "neither trains nor benchmarks" in refused.err


def test_a_stop_while_exporting_leaves_no_process_and_names_what_is_incomplete(toy):
    command = toy.start("export", "toy", FAKE_EXPORT="hangs")
    command.until((toy.only_run() / "export" / "config.json").exists, "the copy")
    command.interrupt(signal.SIGINT)
    done = command.finish()
    assert done.code == 130 and f"{toy.only_run() / 'export'} is incomplete" in done.err
    assert toy.left_over() == [] and toy.record()["status"] == "done"
