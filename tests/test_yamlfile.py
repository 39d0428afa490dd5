"""YAML files that people write: values, places, and what is no such file. Run: pytest tests/test_yamlfile.py."""

import os
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.specs.yamlfile import MAX_BYTES, MAX_PROBLEMS, MAX_SHOWN, YamlSource, read_yaml, set_value
from tests.reports import flat

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "it's a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def source(folder: Path, content: str, *overrides: str) -> YamlSource:
    read = read_yaml(write(folder, content))
    for override in overrides:
        set_value(read, override)
    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("1e-4", 1e-4),
        ("5.0e-5", 5e-5),
        ("1e5", 1e5),
        ("0o17", 15),
        ("017", 17),
        ("12:30:45", "12:30:45"),
        ("~", None),
        ("", None),
        ("2024-01-01", date(2024, 1, 1)),
        ("'no'", "no"),
        ('"1e-4"', "1e-4"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("[1, 2.5, x, null]", [1, 2.5, "x", None]),
        ("{a: {b: []}}", {"a": {"b": []}}),
    ],
)
def test_values_are_those_of_yaml_1_2_as_plain_python(text, value, tmp_path):
    read = source(tmp_path, f"key: {text}\n").value["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# nothing but a comment\n", "is empty"),
        (b"- a\n- b\n", ":1:1: expected a mapping of fields, found a list"),
        (b"just words\n", ":1:1: expected a mapping of fields, found a single value"),
        (b"a: 1\nb: 2\na: 3\n", ':3:1: not valid YAML: found duplicate key "a"'),
        (b"a: {b: 1, b: 2}\n", ':1:11: not valid YAML: found duplicate key "b"'),
        (b"a:\n\tb: 1\n", ":2:1: not valid YAML: found character '\\t' that cannot start any token"),
        (b"a: [1, 2\n", ":2:1: not valid YAML"),
        (b"a: 1\n---\nb: 2\n", ":2:1: not valid YAML"),
        (b"a: *nowhere\n", ":1:4: not valid YAML: found undefined alias"),
        (b"a: @b\n", ":1:4: not valid YAML"),
        (b"a: \x00\n", "not valid YAML: unacceptable character"),
        (b"a: \xff\n", "is not UTF-8 text: byte 3 is 0xff"),
        ("a: b".encode("utf-16"), "is not UTF-8 text"),
        (bytes(range(256)) * 4, "is not UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "not valid YAML"),
        (b"a: 2024-13-45\n", "a value cannot be read: month must be in 1..12"),
        (b"a: !!int x\n", "a value cannot be read"),
        (b"a: " + b"9" * 5000, "a value cannot be read"),
        (b"a: " + b"[" * 400 + b"]" * 400, "a value cannot be read: too deep"),
        (BOMB.encode(), "more than 100000 values"),
        (b"a: |\n\tb\n", ":2:1: not valid YAML"),
        (b"a: b\n\x00: 1\n", ":2:1: not valid YAML: unacceptable character"),
        (b"\x00" * 100, ":1:1: not valid YAML"),
        (b"#" * (2 << 20), f"is larger than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_mapping_is_refused_with_file_and_place(content, said, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(SpecError) as error:
        read_yaml(path)
    assert flat(str(error.value))[0].startswith(str(path))
    assert said in flat(str(error.value))[0]
    assert len(str(error.value)) < 700


def test_a_file_of_the_largest_size_is_read(tmp_path):
    path = write(tmp_path, "a: 1\n#" + "x" * (MAX_BYTES - 6))
    assert path.stat().st_size == MAX_BYTES
    assert read_yaml(path).value == {"a": 1}


def test_an_anchor_may_be_used_twice(tmp_path):
    assert read_yaml(write(tmp_path, "a: &x 1\nb: &x 2\nc: *x\n")).value == {"a": 1, "b": 2, "c": 2}


def test_a_byte_order_mark_and_windows_lines_make_no_difference(tmp_path):
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: x\r\n")).value == {"a": 1, "b": "x"}


def test_a_missing_file_names_those_that_are_there(tmp_path):
    write(tmp_path, "a: 1")
    with pytest.raises(SpecError, match="no such file") as error:
        read_yaml(tmp_path / "its a.yaml")
    assert "it's a.yaml" in error.value.remedy


def test_a_folder_names_the_files_in_it(tmp_path):
    write(tmp_path, "a: 1")
    with pytest.raises(SpecError, match="is a folder, not a file") as error:
        read_yaml(tmp_path)
    assert "it's a.yaml" in error.value.remedy


@pytest.mark.parametrize("name", ["x" * 300, "it's a.yaml/below"])
def test_a_path_that_cannot_be_read_is_refused(name, tmp_path):
    write(tmp_path, "a: 1")
    with pytest.raises(SpecError, match="cannot be read"):
        read_yaml(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_device_without_end_is_not_read_to_its_end():
    with pytest.raises(SpecError, match="is larger than"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path, "a: 1")
    path.chmod(0)
    with pytest.raises(SpecError, match="cannot be read: Permission denied"):
        read_yaml(path)


PIECES = [
    *"abk:,-?&*!|>'\"[]{}#%@`~=<.+_ \n\t\r\0",
    ": ", "- ", "\n  ", "\n    ", "&a ", "*a", "<<: *a", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ",
    "!!set ", "!!omap ", "!x ", "%YAML 1.1\n", "---\n", "...\n", "|2+", "\\x", "0x", "0o9", "0b2", "0x_", "._", "1e5",
    ".inf", "2024-13-45", "2001-12-14t25:59:43", "12:30:45", "true", "\ufeff", "\x85", "\u2028", "😀",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_a_mapping_or_refused(tmp_path_factory, text):
    """Never another error: whatever the YAML library raises for it."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(f"k: {text}".encode())
    try:
        assert isinstance(read_yaml(path).value, dict)
    except SpecError:
        pass


# Places


def test_a_place_is_the_line_and_column_of_the_key_or_item(tmp_path):
    read = source(tmp_path, "a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n")
    places = {at: read.place(at).removeprefix(f"{read.path}:") for at in [(), ("a",), ("a", "b"), ("a", "c", 1, "d")]}
    assert places == {(): "1:1", ("a",): "1:1", ("a", "b"): "2:3", ("a", "c", 1, "d"): "5:8"}
    assert read.place(("a", "c", 0)).endswith(":4:7")
    assert read.place(("a", "missing")).endswith(":1:1")
    assert read.place(("a", "c", 7)).endswith(":3:3")


def test_a_merged_key_has_the_place_of_what_it_is_merged_into(tmp_path):
    read = source(tmp_path, "x: &x {deep: 1}\nb:\n  <<: *x\n")
    assert read.value["b"] == {"deep": 1}
    assert read.place(("b", "deep")).endswith(":2:1")


def test_problems_stand_in_the_order_of_the_file(tmp_path):
    read = source(tmp_path, "a: 1\nb: 2\nc: [3]\n")
    lines = flat(read.report([(("c", 0), "third"), (("b",), "second"), (("a",), "first")]))
    assert lines[0] == f"{read.path} has 3 errors:"
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["first", "second", "third"]
    assert lines[3] == f"{read.path}:3:5: c.0: third"


def test_one_problem_is_one_error_and_the_whole_has_a_name(tmp_path):
    read = source(tmp_path, "a: 1\n")
    assert flat(read.report([((), "nothing to do")])) == [
        f"{read.path} has 1 error:",
        f"{read.path}:1:1: spec: nothing to do",
    ]


def test_a_problem_shows_its_line_and_what_to_do(tmp_path):
    read = source(tmp_path, "a: 1\nb:\n  lora_rnak: 8\n", "c=3")
    problems = [
        (("b", "lora_rnak"), "unknown; did you mean 'lora_rank'?\nor leave it out"),
        (("c",), "wrong"),
        ((), "nothing to do"),
    ]
    assert read.report(problems).split("\n") == [
        f"{read.path} has 3 errors:",
        "",
        "error: c: wrong",
        "  --> --set c=3",
        "",
        "error: spec: nothing to do",
        f"  --> {read.path}:1:1",
        "",
        "error: b.lora_rnak: unknown",
        f"  --> {read.path}:3:3",
        "   |",
        " 3 |   lora_rnak: 8",
        "   |   ^^^^^^^^^",
        "   = help: did you mean 'lora_rank'?",
        "   = help: or leave it out",
    ]


def test_a_file_that_is_no_yaml_shows_the_line(tmp_path):
    path = write(tmp_path, "a: 1\nb: [1\nc: 2\n")
    with pytest.raises(SpecError) as error:
        read_yaml(path)
    assert error.value.message.split("\n")[1:] == [f"  --> {path}:3:2", "   |", " 3 | c: 2", "   |  ^"]
    path = write(tmp_path, "a: 1\nb: \x07x\n")
    with pytest.raises(SpecError) as error:
        read_yaml(path)
    assert error.value.message.split("\n")[1:] == [f"  --> {path}:2:4", "   |", " 2 | b: \\x07x", "   |    ^^^^"]


def test_of_many_problems_the_first_are_shown_and_the_others_counted(tmp_path):
    read = source(tmp_path, "".join(f"k{number}: 1\n" for number in range(MAX_PROBLEMS)))
    some = [((key,), "unknown") for key in read.value]
    report = read.report(some[:60])
    assert report.count("\nerror: ") == MAX_SHOWN and report.endswith("... and 10 more")
    assert read.report(some).startswith(f"{read.path} has {MAX_PROBLEMS} errors or more:")


def test_a_name_as_long_as_the_file_is_cut(tmp_path):
    key = "k" * 100_000
    read = source(tmp_path, f"? {key}\n: 1\n")
    assert len(read.report([((key,), "unknown")])) < 1000


# Overrides

TEXT = "a: 1\nsection:\n  b: x\n  none:\nitems:\n  - c: 1\n  - d: 2\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.0", 1.0),
        ("1e-4", 1e-4),
        ("true", True),
        ("no", "no"),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ('""', ""),
        ("[q_proj, 1]", ["q_proj", 1]),
        ("{x: [1]}", {"x": [1]}),
        ("a=b", "a=b"),
        ("--x=1", "--x=1"),
        (" blank ", "blank"),
        ("'# no comment'", "# no comment"),
    ],
)
def test_set_reads_its_value_as_the_file_is_read(text, value, tmp_path):
    read = source(tmp_path, TEXT, f"section.b={text}").value["section"]["b"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("a=9", ("a",)),
        (" a =9", ("a",)),
        ("new=9", ("new",)),
        ("section.b=9", ("section", "b")),
        ("section.new.deep=9", ("section", "new", "deep")),
        ("section.none.deep=9", ("section", "none", "deep")),
        ("made.up=9", ("made", "up")),
        ("items.0.c=9", ("items", 0, "c")),
        ("items.1=9", ("items", 1)),
        ("items.2=9", ("items", 2)),
        ("made.0=9", ("made", 0)),
        ("section.0=9", ("section", "0")),
        ("section.0.x=9", ("section", "0", "x")),
    ],
)
def test_set_changes_one_value_and_says_so(override, path, tmp_path):
    read = source(tmp_path, TEXT, override)
    value = read.value
    for step in path:
        value = value[step]
    assert value == 9
    assert read.place(path) == f"--set {override}"
    assert read.place((*path, "below")) == f"--set {override}"
    kept = source(tmp_path, TEXT).value
    untouched = set(kept) - {path[0]}
    assert {key: read.value[key] for key in untouched} == {key: kept[key] for key in untouched}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("", "expected KEY=VALUE, such as --set train.num_train_epochs=1"),
        ("a", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("  =1", "expected KEY=VALUE"),
        ("a.b=1", "a has no item 'b'"),
        ("a.b.c=1", "there is no 'b' to go through"),
        ("items.x=1", "items has no item 'x'"),
        ("items.3=1", "items has no item 3"),
        ("items.-1=1", "items has no item '-1'"),
        ("items.5.c=1", "there is no 5 to go through"),
        ("items.x.c=1", "there is no 'x' to go through"),
        ("a=[1", "'[1' is not YAML; quote it"),
        ("a=b: c: d", "is not YAML; quote it"),
        ("a=@b", "is not YAML; quote it"),
        ("a=*b", "is not YAML; quote it"),
        ("a=\x07", "is not YAML; quote it"),
        ("a=\udcff", "is not YAML; quote it"),
        ("a=2024-13-45", "is not YAML; quote it"),
        ("a={b: 1, b: 2}", "is not YAML; quote it"),
    ],
)
def test_a_bad_override_is_refused_as_it_was_written(override, said, tmp_path):
    with pytest.raises(SpecError) as error:
        source(tmp_path, TEXT, override)
    assert str(error.value).startswith(f"--set {override}: ")
    assert said in str(error.value)


def test_the_last_of_several_overrides_counts_in_value_and_place(tmp_path):
    read = source(tmp_path, TEXT, "section.b=1", "section={b: 2}")
    assert read.value["section"] == {"b": 2}
    assert read.place(("section", "b")) == "--set section={b: 2}"
    read = source(tmp_path, TEXT, "section={b: 2}", "section.b=3")
    assert read.value["section"] == {"b": 3}
    assert read.place(("section", "b")) == "--set section.b=3"
    assert read.place(("section", "c")) == "--set section={b: 2}"
