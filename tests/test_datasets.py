"""Datasets: entries, archives, texts. Real archives: ORCHESTRATOR_ARCHIVES=DIR pytest tests/test_datasets.py."""

import gzip
import hashlib
import io
import itertools
import json
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.data.archives import Archive, ArchiveStore, read_members
from orchestrator.data.datasets import (
    Dataset,
    ParallelText,
    entry_folders,
    first,
    list_entries,
    load_entry,
    load_split,
    media_problem,
    overlap,
    prompt,
    text_sha256,
    write_training_file,
)
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import shipped
from tests.imported_once import Imported
from tests.reports import flat

SHIPPED = shipped("dataset_info")
INSTRUCTION = "Translate the following English sentence into German."
# What readers that split on more than \n, or that trust a locale, get wrong.
HARD_SENTENCES = [
    "a\x85b",
    "a\u2028b",
    'quote " and \\',
    "tab\tx",
    "größer 😀",
    "nul \0 x",
    "a\rb",
    " spaces ",
    "{{ x }}",
    "1e-4",
]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parallel(sources: list[str], references: list[str] | None = None) -> ParallelText:
    references = references if references is not None else [f"T {source}" for source in sources]
    return ParallelText(sources, references, 0, text_sha256(sources, references), "toy train", [])


def entry_text(source: bytes, target: bytes, pairs: int) -> str:
    return f"""\
description: a toy
license: CC0-1.0
source_lang: en
target_lang: de
instruction: {INSTRUCTION}
splits:
  train:
    source: toy/train.en
    target: toy/train.de
    sha256: {{source: "{sha256(source)}", target: "{sha256(target)}"}}
    pairs: {pairs}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Dataset]:
    """Makes an entry 'toy' whose files hold the given bytes."""

    def make(source: bytes = b"a\nb\n", target: bytes = b"A\nB\n", pairs: int = 2) -> Dataset:
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "train.en").write_bytes(source)
        (tmp_path / "toy" / "train.de").write_bytes(target)
        (tmp_path / "toy.yaml").write_text(entry_text(source, target, pairs))
        return load_entry("toy", [tmp_path])

    return make


def store(tmp_path: Path, from_folder: Path | None = None) -> ArchiveStore:
    return ArchiveStore(from_folder, tmp_path / "cache")


# Entries


@pytest.mark.parametrize("name", sorted(list_entries([SHIPPED])))
def test_every_shipped_entry_is_right(name: str) -> None:
    assert load_entry(name, [SHIPPED]).name == name


def test_the_shipped_captions_load_and_are_not_trained_on(tmp_path: Path) -> None:
    captions = load_entry("captions_en_de", [SHIPPED])
    splits = {name: load_split(captions, name, store(tmp_path)) for name in ("train", "validation", "test")}
    assert {name: len(text.sources) for name, text in splits.items()} == {"train": 500, "validation": 50, "test": 100}
    for one, other in itertools.combinations(splits.values(), 2):
        assert overlap(one, other) == 0


def test_both_shipped_datasets_ask_for_a_translation_in_the_same_words() -> None:
    """A model trained on one is benchmarked on the other with the prompt it knows."""
    names = ("captions_en_de", "multi30k_en_de")
    assert {load_entry(name, [SHIPPED]).entry.instruction for name in names} == {INSTRUCTION}


def test_the_workspace_hides_a_shipped_entry_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "captions_en_de.yaml").write_text("")
    folders = entry_folders(tmp_path)
    assert list_entries(folders)["captions_en_de"] == tmp_path / "captions_en_de.yaml"
    assert list_entries(folders)["multi30k_en_de"].parent == SHIPPED


def test_a_checkout_has_one_folder_of_entries() -> None:
    assert entry_folders(SHIPPED) == [SHIPPED]


def test_an_unknown_dataset_brings_the_nearest_name_and_all_names() -> None:
    with pytest.raises(SpecError) as error:
        load_entry("multi30k_de_en", [SHIPPED])
    assert "did you mean 'multi30k_en_de'?" in error.value.message
    assert "captions_en_de, multi30k_en_de" in error.value.remedy


@pytest.mark.parametrize("name", ["../toy", "/etc/passwd", "", "toy.yaml"])
def test_a_name_that_is_a_path_is_no_dataset(name: str, toy: Callable[..., Dataset]) -> None:
    with pytest.raises(SpecError, match="no dataset"):
        load_entry(name, [toy().folder / "toy"])


def test_a_name_that_llamafactory_would_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a,b.yaml").write_text(entry_text(b"", b"", 1))
    with pytest.raises(SpecError, match="'a,b' cannot be the name of a dataset"):
        load_entry("a,b", [tmp_path])


def test_every_problem_of_an_entry_is_reported_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("""\
description: a toy
licence: CC0-1.0
source_lang: English
target_lang: de
instruction: " "
splits:
  train:
    archive: train.tgz
    source: a
    target: b
    pairs: 0
  test:
    source: /etc/passwd
    target: ../x
    sha256: {sorce: abc, target: def}
    pair: 3
archives:
  train.tgz: {url: "file:///etc/passwd", sha256: 00, size_bytes: 1}
""")
    with pytest.raises(SpecError) as error:
        load_entry("toy", [tmp_path])
    message = "\n".join(flat(error.value.message))
    file = tmp_path / "toy.yaml"
    for expected in (
        f"{file} has 14 errors",
        f"{file}:2:1: licence: unknown field; did you mean 'license'?",
        ": license: missing",
        f"{file}:3:1: source_lang: ",
        f"{file}:5:1: instruction: ",
        f"{file}:11:5: splits.train.pairs: Input should be greater than 0 (got 0)",
        f"{file}:13:5: splits.test.source: expected a path inside dataset_info/",
        f"{file}:14:5: splits.test.target: expected a path inside dataset_info/",
        f"{file}:15:14: splits.test.sha256.sorce: unknown field; did you mean 'source'?",
        "splits.test.sha256.source: missing",
        "splits.test.sha256.target: ",
        f"{file}:16:5: splits.test.pair: unknown field; did you mean 'pairs'?",
        "splits.test.pairs: missing",
        f"{file}:18:15: archives.train.tgz.url: ",
        "archives.train.tgz.sha256: ",
    ):
        assert expected in message
    assert error.value.remedy == f"edit {file}"


def test_a_split_needs_an_archive_that_is_there_and_two_different_sides(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(f"""\
{entry_text(b"", b"", 1).partition("splits:")[0]}splits:
  train: {{archive: train.tgz, source: a, target: a, pairs: 1}}
archives:
  train.tar.gz: {{url: "http://localhost/x", sha256: "{"0" * 64}", size_bytes: 1}}
""")
    with pytest.raises(SpecError) as error:
        load_entry("toy", [tmp_path])
    message = "\n".join(flat(error.value.message))
    assert "splits.train.archive: archives has no 'train.tgz'; did you mean 'train.tar.gz'?" in message
    assert "splits.train.target: the source is 'a' too" in error.value.message


def test_names_of_splits_and_archives_are_checked_at_their_place(tmp_path: Path) -> None:
    archive = f'{{url: "http://localhost/x", sha256: "{"0" * 64}", size_bytes: 1}}'
    entry = entry_text(b"", b"", 1).replace("train:", "t/1:") + f"archives:\n  ../x: {archive}\n"
    (tmp_path / "toy.yaml").write_text(entry)
    with pytest.raises(SpecError) as error:
        load_entry("toy", [tmp_path])
    message = "\n".join(flat(error.value.message))
    assert "toy.yaml:7:3: splits.t/1: String should match" in message
    assert "toy.yaml:13:3: archives.../x: String should match" in message


def test_an_unknown_split_brings_the_nearest_name_and_all_names(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="toy has no split 'trian'; did you mean 'train'") as error:
        load_split(toy(), "trian", store(tmp_path))
    assert error.value.remedy == "its splits: train"


# Texts


def test_a_pair_with_a_blank_side_is_dropped_counted_and_the_lines_are_kept(
    toy: Callable[..., Dataset], tmp_path: Path
) -> None:
    text = load_split(toy(b"a\n\nc\nd\n\n", b"A\nB\n \t\nD\n\n", 2), "train", store(tmp_path))
    assert (text.sources, text.references) == (["a", "d"], ["A", "D"])
    assert (text.blank_pairs, text.lines, text.origin) == (3, [1, 4], "toy train")


def test_only_a_newline_ends_a_line(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    source = "a\x85b\u2028c\x0bd\x0ce\u2029f\n g \n".encode()
    text = load_split(toy(source, b"A\nB\n"), "train", store(tmp_path))
    assert text.sources == ["a\x85b\u2028c\x0bd\x0ce\u2029f", " g "]


def test_a_byte_order_mark_and_carriage_returns_at_line_ends_are_no_text(
    toy: Callable[..., Dataset], tmp_path: Path
) -> None:
    text = load_split(toy(b"\xef\xbb\xbfa\r\nb\r\n", b"A\nB"), "train", store(tmp_path))
    assert (text.sources, text.references) == (["a", "b"], ["A", "B"])


def test_bytes_that_are_not_utf8_are_reported_with_file_and_line(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"toy/train\.de, line 2: not UTF-8 text \(byte 0xfc"):
        load_split(toy(b"a\nb\n", b"A\n\xfcber\n"), "train", store(tmp_path))


def test_sides_of_different_length_are_reported_with_both_counts(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.en has 3 lines, .*train\.de has 2"):
        load_split(toy(b"a\nb\nc\n", b"A\nB\n"), "train", store(tmp_path))


def test_another_number_of_pairs_is_reported_with_both_numbers(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"splits\.train\.pairs: expected 3 pairs, found 1 \(and 1 with a blank"):
        load_split(toy(b"a\n\n", b"A\nB\n", 3), "train", store(tmp_path))


def test_a_changed_file_is_reported_with_both_sums(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = toy()
    (dataset.folder / "toy" / "train.de").write_bytes(b"A\nX\n")
    with pytest.raises(PrerequisiteError) as error:
        load_split(dataset, "train", store(tmp_path))
    assert sha256(b"A\nX\n") in error.value.message
    assert sha256(b"A\nB\n") in error.value.message


def test_a_missing_file_is_named(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = toy()
    (dataset.folder / "toy" / "train.de").unlink()
    with pytest.raises(PrerequisiteError, match=r"toy/train\.de, a file of toy, cannot be read: No such file"):
        load_split(dataset, "train", store(tmp_path))


def test_a_link_out_of_the_folder_is_not_followed(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = toy()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(b"A\nB\n")
    (dataset.folder / "toy" / "train.de").unlink()
    (dataset.folder / "toy" / "train.de").symlink_to(outside)
    with pytest.raises(SpecError, match="leads out of"):
        load_split(dataset, "train", store(tmp_path))


def test_equal_texts_hash_equally_wherever_they_are_from(toy: Callable[..., Dataset], tmp_path: Path) -> None:
    text = load_split(toy(b"a\r\n\nb\n", b"A\n\nB\n"), "train", store(tmp_path))
    assert text.sha256 == text_sha256(["a", "b"], ["A", "B"])
    assert text.sha256 != text_sha256(["a", "A"], ["b", "B"])


def test_the_first_pairs_are_another_text() -> None:
    text = parallel(["a", "b", "c"])
    assert first(text, None) is text
    assert first(text, 3) is text
    head = first(text, 2)
    assert (head.sources, head.references) == (["a", "b"], ["T a", "T b"])
    assert head.sha256 == text_sha256(head.sources, head.references)


def test_overlap_counts_test_sources_that_are_trained_on_case_and_space_aside() -> None:
    train = parallel(["A man  sleeps.", "Straße", "x"])
    test = parallel(["a man sleeps. ", "a\u00a0man sleeps.", "STRASSE", "y"])
    assert overlap(train, test) == 3


# The training file


def test_the_training_file_has_a_record_for_each_pair_in_plain_ascii(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.jsonl"
    write_training_file(parallel(HARD_SENTENCES), INSTRUCTION, path)
    assert path.read_bytes().isascii()
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert records == [{"instruction": INSTRUCTION, "input": text, "output": f"T {text}"} for text in HARD_SENTENCES]


def test_the_training_file_ends_after_max_samples(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_training_file(parallel(["a", "b", "c"]), INSTRUCTION, path, max_samples=2)
    assert [json.loads(line)["input"] for line in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("word", ["<image>", "<video>", "<audio>"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_words_that_llamafactory_takes_for_media_are_refused_with_split_and_line(
    word: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("IMAGE", "VIDEO", "AUDIO"):
        monkeypatch.delenv(f"{kind}_PLACEHOLDER", raising=False)
    marked = ["a", f"b {word}"]
    sides = (marked, ["A", "B"]) if side == "source" else (["a", "b"], marked)
    text = ParallelText(*sides, 0, "", "toy train", [1, 7])
    with pytest.raises(SpecError, match=f"toy train, line 7 of the {side} has '{word}'"):
        write_training_file(text, INSTRUCTION, tmp_path / "train.jsonl")
    assert not (tmp_path / "train.jsonl").exists()
    assert "the instruction" in str(media_problem(parallel(["a"]), f"Translate {word}"))


def test_a_media_word_that_llamafactory_was_told_to_use_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_PLACEHOLDER", "<|picture|>")
    assert media_problem(parallel(["an <image> tag"]), INSTRUCTION) is None
    assert media_problem(parallel(["a <|picture|>"]), INSTRUCTION) is not None


READ_AS_LLAMAFACTORY = """
import json, sys
from types import SimpleNamespace
from datasets import load_dataset
from llamafactory.data.converter import AlpacaDatasetConverter
names = ["history", "kto_tag", "system", "tools", "images", "videos", "audios"]
columns = SimpleNamespace(prompt="instruction", query="input", response="output", ranking=False, **dict.fromkeys(names))
convert = AlpacaDatasetConverter(columns, None)
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
for row in map(convert, rows):
    print(json.dumps([row["_prompt"][0]["content"], row["_response"][0]["content"]]))
"""


@pytest.mark.integration
def test_llamafactory_reads_the_prompt_that_a_benchmark_sends(llamafactory: Imported, tmp_path: Path) -> None:
    """Training and benchmark put the same user turn to the model, whatever the sentence holds."""
    text = parallel(HARD_SENTENCES)
    write_training_file(text, INSTRUCTION, tmp_path / "train.jsonl")
    done = llamafactory.run(READ_AS_LLAMAFACTORY, tmp_path / "train.jsonl", tmp_path / "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    expected = zip(text.sources, text.references, strict=True)
    assert found == [[prompt(INSTRUCTION, source), reference] for source, reference in expected]


# Archives


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_are_found_with_and_without_a_leading_dot(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"./._a": b"AppleDouble", "./a": b"A", "b": b"B"}, mode))
    assert read_members(path, ["a", "b", "./a"]) == [b"A", b"B", b"A"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]


def test_a_missing_member_is_reported_with_the_nearest_and_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_bytes({"train.en": b"", "train.de": b""}))
    with pytest.raises(SpecError, match=r"has no member 'trian\.en'; did you mean 'train\.en'") as error:
        read_members(path, ["trian.en"])
    assert "'train.en', 'train.de'" in error.value.remedy


def special(kind: bytes, **fields: object) -> bytes:
    member = tarfile.TarInfo("a")
    member.type = kind
    for name, value in fields.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


HOSTILE = {
    "a link": (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "is not a plain file"),
    "a hard link": (special(tarfile.LNKTYPE, linkname="/etc/passwd"), "is not a plain file"),
    "a device": (special(tarfile.CHRTYPE), "is not a plain file"),
    "a folder": (special(tarfile.DIRTYPE), "is not a plain file"),
    "a sparse file": (special(tarfile.GNUTYPE_SPARSE), "is not a plain file"),
    "a size that is not there": (special(tarfile.REGTYPE, size=1 << 40), "cannot be read as a tar archive"),
    "a long name that is not there": (special(tarfile.GNUTYPE_LONGNAME, size=1 << 40), "cannot be read|no member"),
    "a pax header that is not there": (special(tarfile.XHDTYPE, size=1 << 40), "cannot be read|no member"),
    "one name twice": (tar_bytes({"a": b"1", "./a": b"2"}, "w"), "has 2 members 'a'"),
    "no tar": (b"<!DOCTYPE html><title>Sign in</title>" * 40, "cannot be read as a tar archive"),
    "nothing": (b"", "cannot be read as a tar archive"),
    "cut gzip": (tar_bytes({"a": bytes(10_000)})[:60], "cannot be read as a tar archive"),
    "bad gzip": (b"\x1f\x8b" + bytes(100), "cannot be read as a tar archive"),
    "bad xz": (b"\xfd7zXZ\x00" + bytes(100), "cannot be read as a tar archive"),
    "bad bzip2": (b"BZh9" + bytes(100), "cannot be read as a tar archive"),
    "a bomb": (gzip.compress(bytes(2_000_000)), "unpacks to more than the 1000000 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_an_error_that_says_why(case: str, tmp_path: Path) -> None:
    content, expected = HOSTILE[case]
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=expected):
        read_members(path, ["a"], max_bytes=1_000_000)


def test_more_members_than_any_dataset_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tarfile.TarInfo("a").tobuf() * 10_001))
    with pytest.raises(SpecError, match="more than 10000 members"):
        read_members(path, ["a"])


# Where archives come from


class Server:
    """A loopback web server: path -> (status, headers, body)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                status, headers, body = server.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:  # the client has read enough
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.http.shutdown()
    thread.join()
    running.http.server_close()


CONTENT = tar_bytes({"train.en": b"a\nb\n", "train.de": b"A\nB\n"})


def archive_at(url: str, content: bytes = CONTENT) -> Archive:
    return Archive(url=url, sha256=sha256(content), size_bytes=len(content))


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_file()]


def test_an_archive_is_fetched_once_and_then_taken_from_the_cache(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = (200, {"Content-Length": str(len(CONTENT))}, CONTENT)
    archive = archive_at(f"{server.url}/x")
    path = store(tmp_path).path("x.tgz", archive)
    assert path == tmp_path / "cache" / archive.sha256 / "x.tgz"
    assert path.read_bytes() == CONTENT
    assert store(tmp_path).path("x.tgz", archive) == path
    assert server.asked == ["/x"]
    assert [file.name for file in path.parent.iterdir()] == ["x.tgz"]


def test_a_redirect_is_followed_on_the_web_only(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = (302, {"Location": "/y"}, b"")
    server.answers["/y"] = (200, {}, CONTENT)
    assert store(tmp_path).path("x.tgz", archive_at(f"{server.url}/x")).is_file()
    for elsewhere in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.answers["/z"] = (302, {"Location": elsewhere}, b"")
        with pytest.raises(PrerequisiteError, match="cannot be fetched from"):
            store(tmp_path).path("x.tgz", archive_at(f"{server.url}/z", b"other"))


def test_the_folder_given_comes_before_cache_and_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "x.tgz").write_bytes(CONTENT)
    path = store(tmp_path, tmp_path / "given").path("x.tgz", archive_at(f"{server.url}/x"))
    assert path == tmp_path / "given" / "x.tgz"
    assert server.asked == []


def test_a_wrong_archive_in_the_folder_given_is_reported_not_passed_over(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = (200, {}, CONTENT)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "x.tgz").write_bytes(b"other")
    with pytest.raises(PrerequisiteError) as error:
        store(tmp_path, tmp_path / "given").path("x.tgz", archive_at(f"{server.url}/x"))
    for expected in (str(tmp_path / "given" / "x.tgz"), sha256(b"other"), sha256(CONTENT)):
        assert expected in error.value.message
    assert server.asked == []


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"the folder of archives .*typo does not exist"):
        store(tmp_path, tmp_path / "typo").path("x.tgz", archive_at("http://127.0.0.1/x"))


def test_a_damaged_archive_in_the_cache_is_reported_with_the_way_out(server: Server, tmp_path: Path) -> None:
    archive = archive_at(f"{server.url}/x")
    cached = tmp_path / "cache" / archive.sha256 / "x.tgz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT[:-1])
    with pytest.raises(PrerequisiteError, match=sha256(CONTENT[:-1])) as error:
        store(tmp_path).path("x.tgz", archive)
    assert f"rm '{cached}'" in error.value.remedy


FAULTS = {
    "another file": ((200, {}, bytes(len(CONTENT))), "is not the archive that the entry means"),
    "a larger file": ((200, {}, CONTENT + b"x"), "is larger than the"),
    "a page to sign in": ((200, {}, b"<html>"), r"is not the archive .*\(6 bytes, expected"),
    "half of it": ((200, {"Content-Length": str(len(CONTENT))}, CONTENT[:50]), "is not the archive|cannot be fetched"),
    "404": ((404, {}, b""), "cannot be fetched from .*404"),
    "500": ((500, {}, b""), "cannot be fetched from .*500"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_archive_is_not_kept(fault: str, server: Server, tmp_path: Path) -> None:
    server.answers["/x"], expected = FAULTS[fault]
    with pytest.raises(PrerequisiteError, match=expected) as error:
        store(tmp_path).path("x.tgz", archive_at(f"{server.url}/x"))
    assert "put x.tgz into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR" in error.value.remedy
    assert nothing_left(tmp_path)


def test_without_a_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(PrerequisiteError, match=r"x\.tgz is not on this machine and cannot be fetched") as error:
            store(tmp_path).path("x.tgz", archive_at(url))
    assert "ORCHESTRATOR_ARCHIVES=DIR" in error.value.remedy


def test_a_cache_that_cannot_be_written_is_reported(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = (200, {}, CONTENT)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(PrerequisiteError, match=r"cannot be fetched from .* into .*cache"):
        store(tmp_path).path("x.tgz", archive_at(f"{server.url}/x"))


def test_find_never_uses_the_network(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = (200, {}, CONTENT)
    assert store(tmp_path).find("x.tgz", archive_at(f"{server.url}/x")) is None
    assert server.asked == []


def test_the_environment_names_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ARCHIVES", str(tmp_path / "given"))
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    assert ArchiveStore.from_environment() == ArchiveStore(tmp_path / "given", tmp_path / "cache" / "archives")
    assert ArchiveStore.from_environment(tmp_path / "x").from_folder == tmp_path / "x"
    monkeypatch.setenv("ORCHESTRATOR_ARCHIVES", "")
    assert ArchiveStore.from_environment().from_folder is None


def test_a_split_in_an_archive_loads_like_one_in_files(
    server: Server, tmp_path: Path, toy: Callable[..., Dataset]
) -> None:
    server.answers["/x"] = (200, {}, CONTENT)
    (tmp_path / "packed.yaml").write_text(f"""\
{entry_text(b"", b"", 1).partition("splits:")[0]}splits:
  train: {{archive: x.tgz, source: train.en, target: train.de, pairs: 2}}
archives:
  x.tgz: {{url: "{server.url}/x", sha256: "{sha256(CONTENT)}", size_bytes: {len(CONTENT)}}}
""")
    packed = load_split(load_entry("packed", [tmp_path]), "train", store(tmp_path))
    plain = load_split(toy(), "train", store(tmp_path))
    assert packed.sources == plain.sources
    assert packed.sha256 == plain.sha256


# The real archives


@pytest.fixture
def real_archives() -> ArchiveStore:
    if not os.environ.get("ORCHESTRATOR_ARCHIVES"):
        pytest.skip("ORCHESTRATOR_ARCHIVES is not set: no folder with Multi30K's archives")
    return ArchiveStore.from_environment()


def test_multi30k_has_the_published_numbers_of_sentences(real_archives: ArchiveStore) -> None:
    """29,000, 1,014 and 1,000 (Elliott et al. 2016), though two files end with a blank line."""
    dataset = load_entry("multi30k_en_de", [SHIPPED])
    texts = {split: load_split(dataset, split, real_archives) for split in dataset.entry.splits}
    assert {split: (len(text.sources), text.blank_pairs) for split, text in texts.items()} == {
        "train": (29_000, 1),
        "validation": (1_014, 1),
        "test2016": (1_000, 0),
    }
    words = {split: sum(len(line.split()) for line in text.sources) for split, text in texts.items()}
    assert all(8 < words[split] / len(text.sources) < 14 for split, text in texts.items())
    assert all(media_problem(text, dataset.entry.instruction) is None for text in texts.values())


def test_multi30k_becomes_a_training_file(real_archives: ArchiveStore, tmp_path: Path) -> None:
    text = load_split(load_entry("multi30k_en_de", [SHIPPED]), "train", real_archives)
    write_training_file(text, INSTRUCTION, tmp_path / "train.jsonl")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert len(lines) == 29_000
    assert json.loads(lines[-1])["output"] == text.references[-1]
