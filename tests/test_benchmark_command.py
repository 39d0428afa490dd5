"""`benchmark` as a user runs it: going on, the cache, parts, files."""

import json
import signal
import time

import openai_stub as stub
from test_evaluate import lines_of, sources_of

CAPTIONS = ("--testset", "captions_en_de", "--split", "test")


def folders(workshop):
    return sorted(workshop.runs.glob("*/benchmarks/*"))


def test_after_kill_9_the_same_command_goes_on_with_what_is_missing(workshop, server):
    """At a server of others: its weights are not known, so nothing comes from the cache."""
    well = server.replies
    server.replies = lambda source, attempt: time.sleep(0.1) or well(source, attempt)
    words = ("benchmark", server.base_url, *CAPTIONS, "--concurrency", "2")
    command = workshop.start(*words)
    command.until(lambda: folders(workshop) and len(lines_of(folders(workshop)[0])) >= 5, "some answers")
    command.interrupt(signal.SIGKILL)
    command.finish()
    saved, asked = {line["source"] for line in lines_of(folders(workshop)[0])}, len(server.bodies)
    server.replies = well
    done = workshop.run(*words)
    assert done.code == 0, done.err
    assert len(saved & set(sources_of(server.bodies[asked:]))) == 1, "one, by which the server is known again"
    [folder] = folders(workshop)
    result = json.loads((folder / "scores.json").read_text())
    assert (result["status"], result["n_resumed"]) == ("complete", len(saved))
    assert f"{len(saved)} sentences were answered before" in done.err
    record = workshop.record()
    assert (record["status"], record["error"], len(record["benchmarks"])) == ("done", None, 1)
    again = workshop.run(*words)
    assert again.code == 0 and len(folders(workshop)) == 2, "what is complete is not gone on with"


def test_a_run_that_was_benchmarked_is_answered_from_the_cache_without_a_server(toy):
    words, found = (*CAPTIONS, "--max-samples", "9", "--json"), []
    for target, servers in ((("toy",), 1), (("toy",), 0), (("toy", "--fresh"), 1), (("toy@base",), 1)):
        before = len(toy.calls("api"))
        found += toy.run("benchmark", *target, *words).json()
        assert len(toy.calls("api")) == before + servers
    first, again, fresh, base = found
    assert (again["n_cache_hits"], again["speed"], again["n_segments"]) == (9, None, 9)
    assert (fresh["n_cache_hits"], base["n_cache_hits"]) == (0, 0)
    assert first["scores"] == again["scores"] == fresh["scores"] != base["scores"], "the fake answers in capitals"


def test_a_sentence_that_fails_leaves_no_score_unless_a_part_will_do(workshop, server):
    refused, well = stub.json_reply({"detail": "too long"}, 400), server.replies
    server.replies = lambda *request: refused if len(server.attempts) == 1 else well(*request)
    words = ("benchmark", server.base_url, *CAPTIONS, "--max-samples", "6", "--concurrency", "1")
    done = workshop.run(*words)
    assert done.code == 4 and "1 of 6 sentences got no answer" in done.err
    assert "BLEU" not in done.out
    server.attempts.clear()
    server.replies = lambda *_: refused
    part = workshop.run(*words, "--allow-incomplete")
    assert part.code == 0 and "5 of 6 sentences were answered" in part.out and "BLEU" in part.out
    assert len(server.attempts) == 2, "the one that failed, and one by which the server is known again"
    server.replies = well
    [result] = workshop.run(*words, "--json").json()
    assert (result["status"], result["n_segments"], result["n_resumed"]) == ("complete", 6, 5)
    assert [item["status"] for item in workshop.record()["benchmarks"]] == ["complete"], "the part's line is replaced"


def test_a_pair_of_files_is_asked_as_the_run_was_trained(toy, tmp_path):
    (tmp_path / "news.en").write_text("A dog runs.\nTwo men talk.\n", "utf-8")
    (tmp_path / "news.de").write_text("Ein Hund läuft.\nZwei Männer reden.\n", "utf-8")
    files = ("--source", tmp_path / "news.en", "--reference", tmp_path / "news.de")
    done = toy.run("benchmark", "toy", *files, "--json")
    assert done.code == 0, done.err
    [result] = done.json()
    assert (result["n_requested"], result["n_testset"]) == (2, 2)
    [line] = [line for line in done.err.splitlines() if " sentences in " in line and "latency" in line]
    assert line.endswith("2 requests at once"), "the huggingface engine: MAX_CONCURRENT, and one that waits"
    strange = toy.run("benchmark", "models/tiny", *files, "--template", "smollm2")
    assert strange.code == 2 and "--instruction" in strange.err


SAME = ("--source", "runs/toy.yaml", "--reference", "runs/toy.yaml")


def test_what_cannot_be_meant_is_refused(toy):
    cases = {
        ("toy", "--metrics", "chrf,blue"): "no metric 'blue'; did you mean 'bleu'",
        ("127.0.0.1:6006/v1",): "without http://",
        ("toy", "--watch"): "--watch are for RUN@all",
        ("toy", *SAME, "--source-lang", "en", "--target-lang", "de!"): "is no language code",
        ("toy", "--source", "a.en"): "go together",
    }
    for message, done in zip(cases.values(), toy.run_together([("benchmark", *words) for words in cases]), strict=True):
        assert done.code == 2 and message in done.err, done.err


def test_metrics_and_language_codes_are_the_users(workshop, server, tmp_path):
    """Japanese without MeCab: by chrF2 alone."""
    for name, text in (("a.txt", "A dog runs.\n"), ("b.txt", "犬が走る。\n")):
        (tmp_path / name).write_text(text, "utf-8")
    words = ("--source", tmp_path / "a.txt", "--reference", tmp_path / "b.txt", "--source-lang", "EN", "--target-lang")
    done = workshop.run(
        "benchmark", server.base_url, *words, "JA_jp", "--instruction", "T.", "--metrics", "chrf,ter", "--json"
    )
    assert done.code == 0, done.err
    [result] = done.json()
    assert [score["metric"] for score in result["scores"]] == ["chrf", "ter"]
    assert result["request"]["target_lang"] == "ja-jp"
