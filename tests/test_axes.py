"""What a sweep varies. Run: pytest tests/test_axes.py."""

import json
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.runs.groups import Axis, points, read_axes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-5,5e-5, 1e-4", ["1e-5", "5e-5", "1e-4"]),
        ('"a, b",c', ['"a, b"', "c"]),
        ("[q_proj,v_proj],[all]", ["[q_proj,v_proj]", "[all]"]),
        ("{a: 1},null", ["{a: 1}", "null"]),
        ("no,012,1:30", ["no", "012", "1:30"]),
        ("1,", ["1"]),
    ],
)
def test_values_stay_as_they_were_written(text, values):
    assert read_axes([f"a.b={text}"]) == [Axis(key="a.b", values=values)]


@pytest.mark.parametrize("word", ["a", "=1", "a=", "a=1,,2", "a=1 # x", "a=1], [2", "a=`", "a=[", "a=\0"])
def test_what_is_no_list_is_refused_with_the_word(word):
    with pytest.raises(SpecError, match=r"^--sweep ") as error:
        read_axes([word])
    assert error.value.remedy


@given(st.lists(st.text(string.printable + "ß😀", max_size=10), min_size=1, max_size=5))
def test_any_texts_can_be_swept_when_quoted(texts):
    (axis,) = read_axes(["a=" + ",".join(json.dumps(text, ensure_ascii=False) for text in texts)])
    assert [yaml.safe_load(value) for value in axis.values] == texts


def test_the_points_are_the_product_with_the_last_axis_fastest():
    assert points(read_axes(["a=1,2", "b=x,y"])) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]


def test_a_key_twice_and_too_many_points_are_refused():
    with pytest.raises(SpecError, match=r"^--sweep a is there 2 times"):
        read_axes(["a=1", "a=2"])
    many = ",".join(map(str, range(40)))
    with pytest.raises(SpecError, match=r"^--sweep makes 1600 runs; at most 1000"):
        read_axes([f"a={many}", f"b={many}"])
