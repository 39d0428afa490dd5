"""YAML files that people write: values, places, problems shown at their line. Run: pytest tests/test_yamlfile.py."""

from datetime import date
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.specs.yamlfile import MAX_BYTES, YamlSource, excerpt, read_yaml, set_value
from tests.reports import flat

# Nine levels of nine aliases: 900 bytes, 400 million values.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "it's a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def source(folder: Path, content: str | bytes, *overrides: str) -> YamlSource:
    read = read_yaml(write(folder, content))
    for override in overrides:
        set_value(read, override)
    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("1e5", 1e5),
        ("", None),
        ("2024-01-01", date(2024, 1, 1)),
        ('"1e-4"', "1e-4"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("[1, 2.5, x, null]", [1, 2.5, "x", None]),
        ("&x true", True),
    ],
)
def test_values_are_those_of_yaml_1_2_as_plain_python(text, value, tmp_path):
    read = source(tmp_path, f"key: {text}\n").value["key"]
    assert read == value
    assert type(read) is type(value)
    assert repr(source(tmp_path, "key: 1\n", f"key={text}").value["key"]) == repr(value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"# nothing but a comment\n", "is empty"),
        (b"- a\n- b\n", ":1:1: expected a mapping of fields"),
        (b"a: 1\nb: 2\na: 3\n", ':3:1: not valid YAML: found duplicate key "a"'),
        (b"a:\n\tb: 1\n", ":2:1: not valid YAML: found character '\\t' that cannot start any token"),
        (b"a: 1\n---\nb: 2\n", ":2:1: not valid YAML"),
        (b"a: \xff\n", "can't decode byte 0xff"),
        (BOMB, "its aliases stand for more than 100,000 values"),
        (b"a: 2024-13-45\n", "a value cannot be read: month must be in 1..12"),
        (b"a: " + b"[" * 400 + b"]" * 400, "a value cannot be read: too deep"),
        (b"#" * (2 << 20), f"bytes, over {MAX_BYTES:,}"),
    ],
)
def test_what_is_no_mapping_is_refused_with_file_and_place(content, problem, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(SpecError) as error:
        read_yaml(path)
    assert flat(str(error.value))[0].startswith(str(path))
    assert problem in flat(str(error.value))[0]
    assert len(str(error.value)) < 700


def test_what_is_no_file_is_refused_and_the_specs_nearby_are_named(tmp_path):
    write(tmp_path, "a: 1")
    with pytest.raises(SpecError, match="no such file") as error:
        read_yaml(tmp_path / "its a.yaml")
    assert "it's a.yaml" in error.value.remedy
    with pytest.raises(SpecError, match="it is no regular file"):
        read_yaml(tmp_path)


def test_a_place_is_the_line_and_column_of_the_key_or_item(tmp_path):
    read = source(tmp_path, "a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\ne: &e {f: 1}\ng:\n  <<: *e\n")
    places = {
        (): "1:1", ("a", "b"): "2:3", ("a", "c", 0): "4:7", ("a", "c", 1, "d"): "5:8", ("a", "missing"): "1:1",
        ("a", "c", 7): "3:3", ("g", "f"): "7:1",  # a merged key has none of its own
    }  # fmt: skip
    assert {at: read.place(at) for at in places} == {at: f"{read.path}:{place}" for at, place in places.items()}


def test_problems_stand_in_the_order_of_the_file_each_with_its_line_and_what_to_do(tmp_path):
    read = source(tmp_path, "a: 1\nb:\n  lora_rnak: 8\n", "c=3", "d=secret")
    read.hidden.add(("d",))
    read.hidden.add(("a",))
    wrong = [((name,), "wrong") for name in "cda"]
    problems = [(("b", "lora_rnak"), "unknown; did you mean 'lora_rank'?\nor leave it out"), *wrong]
    assert read.report(problems).split("\n") == [
        f"{read.path} has 4 errors:", "",
        "error: a: wrong", f"  --> {read.path}:1:1", "",
        "error: c: wrong", "  --> --set c=3", "",
        "error: d: wrong", "  --> --set d=...", "",
        "error: b.lora_rnak: unknown",
        f"  --> {read.path}:3:3",
        "   |",
        " 3 |   lora_rnak: 8",
        "   |   ^^^^^^^^^",
        "   = help: did you mean 'lora_rank'?",
        "   = help: or leave it out",
    ]  # fmt: skip
    assert flat(read.report([((), "wrong")])) == [f"{read.path} has 1 error:", f"{read.path}:1:1: spec: wrong"]


def test_what_stands_at_the_column_is_underlined():
    for text, column, carets in (
        ("  lora_rank: 8", 2, "  ^^^^^^^^^"),
        ("a: {b: 1, 'c d': 2}", 10, "          ^^^^^"),
        ('"x: \\" y": 1', 0, "^^^^^^^^^"),
        ("- [a, b]", 2, "  ^"),
    ):
        assert excerpt(["other", text], 1, column) == ["   |", f" 2 | {text}", f"   | {carets}"]
        assert excerpt(["other", text], 2, 0) == excerpt(["other", text], 1, len(text) + 1) == []
    assert excerpt(["x" * 201], 0, 0) == [], "a long line is not shown"


def test_control_characters_are_made_visible():
    _, line, below = excerpt(["\ta: \x1b[31m\u202e\x00 b: 1"], 0, 12)
    assert line == " 1 |     a: \\x1b[31m\\u202e\\x00 b: 1"
    assert line[below.index("^") :] == "b: 1"


def test_lines_are_counted_as_the_yaml_reader_counts_them(tmp_path):
    read = source(tmp_path, "a: 1\rb: 2\r\nc: 'x\u2028 z'\nd: 3\n")
    report = read.report([(("d",), "wrong")]).split("\n")
    assert report[3:] == [f"  --> {read.path}:4:1", "   |", " 4 | d: 3", "   | ^"]


TEXT = "a: 1\nsection:\n  b: x\n  none:\nitems:\n  - c: 1\n  - d: 2\n"


@pytest.mark.parametrize(
    ("override", "path"),
    [
        (" a =9", ("a",)),
        ("section.none.deep=9", ("section", "none", "deep")),
        ("items.0.c=9", ("items", 0, "c")),
        ("items.2=9", ("items", 2)),
        ("items.2.c=9", ("items", 2, "c")),
        ("made.up=9", ("made", "up")),
        ("section.0.x=9", ("section", "0", "x")),
    ],
)
def test_set_changes_one_value_and_makes_what_is_absent(override, path, tmp_path):
    read = source(tmp_path, TEXT, override)
    value = read.value
    for step in path:
        value = value[step]
    assert value == 9
    assert read.place(path) == read.place((*path, "below")) == f"--set {override}"
    kept = {key: value for key, value in source(tmp_path, TEXT).value.items() if key != path[0]}
    assert kept.items() <= read.value.items()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        *((override, "expected KEY=VALUE, such as --set train.num_train_epochs=1") for override in ("", "a", "  =1")),
        ("a.b=1", "a has no item 'b'"),
        ("items.x=1", "items has no item 'x'"),
        ("items.3=1", "items has no item 3"),
        ("items.-1=1", "items has no item '-1'"),
        ("items.0.c.d=1", "items.0.c has no item 'd'"),
        ("a=[1", "'[1' is not YAML; quote it"),
        ("a=\udcff", "is not YAML; quote it"),
    ],
)
def test_a_bad_override_is_refused_as_it_was_written(override, problem, tmp_path):
    with pytest.raises(SpecError) as error:
        source(tmp_path, TEXT, override)
    assert str(error.value).startswith(f"--set {override}: ")
    assert problem in str(error.value)


def test_the_last_of_several_overrides_counts_in_value_and_place(tmp_path):
    read = source(tmp_path, TEXT, "section.b=1", "section={b: 2}")
    assert read.value["section"] == {"b": 2}
    assert read.place(("section", "b")) == "--set section={b: 2}"
    read = source(tmp_path, TEXT, "section={b: 2}", "section.b=3")
    assert read.value["section"] == {"b": 3}
    assert read.place(("section", "b")) == "--set section.b=3"
    assert read.place(("section", "c")) == "--set section={b: 2}"
