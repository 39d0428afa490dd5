"""Shell texts read as a shell reads them, compared with bash itself."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.shell import MAX_CHARS, Command, read_commands

BASH = shutil.which("bash")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def commands(text: str) -> list[list[str]]:
    return [command.words for command in read_commands(text, "run.sh")]


def only(text: str) -> Command:
    """The last command of a text."""
    return read_commands(text, "run.sh")[-1]


@given(st.lists(TEXT))
def test_any_words_survive_the_way_through_a_shell_text(words: list[str]) -> None:
    assert commands(shlex.join(["run", *words])) == [["run", *words]]


WINDOWS = """run a \\
  b\\
"c\\
d"
cat <<E
x
E
run 'e' # f
if true
then
run g
fi
""".replace("\n", "\r\n")
# Each is run by bash too, with a function `run` that says its arguments.
SCRIPTS = {
    "quotes": r"""A=1; run $A "${A}" '$A' \$A "$A"b 'it'\''s' "x\"y\$z\n\\" a\ b "a'b" 'a"b' """,
    "splitting": """A='x  y '; run $A "$A" a$A"b" $A$A b""",
    "empty words": """A=; run $A "$A" "" '' a""'' """,
    "a value is not split where it is assigned": 'A="x y"; B=$A; C=$B$A; run "$B" $C',
    "defaults": """A=5; E=; run ${E:-a b} "${E:-a b}" ${A-q} ${E:-"a b"} ${E-q} ${E:-'p q'} ${A:+yes} x${A:+} """,
    "quotes in a quoted default": """E=; A=1; run "${E:-a'}'b}" "${E:-'$A'}" "${E:-"'"}" "${E:-"a'b"}" """,
    "defaults that assign": "run ${Y:=d e} $Y",
    "a default within a default": 'E=; F="u v"; run "${E:-${F}x}" "${E:-"$F"}" ${E:-${E:-$F}}',
    "cut ends": "M=Qwen/Qwen3-4B; run saves/${M##*/} ${M%/*} ${M#*/}x ${M%%n*} ${M##*o} ${M%?}",
    "arrays": 'a=(--x "1 2" --y); run "${a[@]}" ${a[@]} "${a[*]}" ${a[1]} "p${a[@]}s" $a "${a[7]}" z',
    "arrays over lines": "a=(a 'b c' # comment's\n d\n); a+=(e 'f g'); run \"${a[@]}\"",
    "empty arrays": 'a=(); run "${a[@]}" x ${a[@]} "p${a[@]}" "${a[*]}" ""; run "${a[@]}"',
    "adding": "A=1; A+=2; run $A; B=(1); B+=(2); run ${B[@]}",
    "a line that ends within a name": "A=1; AB=2; run $A\\\nB $A\\\n -c \"$A\\\nB\"",
    "continued lines": "run a\\\n b\\\nc \\\n   'd\\\ne' \"f\\\ng\"",
    "escapes of bash": r"""run $'a\tb\x41\'\u00e9\101\n\\' $"q" '\t'""",
    "a dollar alone": """run $ a$ "$" "a$" $. '$'""",
    "braces of JSON": """run a=b --x={"a":1} {} '{"a": "b c", "d": 1}'""",
    "redirections anywhere": "run 2>&1 a > /dev/null b 2>/dev/null --c &>/dev/null </dev/null d >&2",
    "a word of digits before a redirection": "run 2 >/dev/null; run a2>/dev/null",
    "here-documents": "run <<EOF a\ntext $(x) \" '\nEOF\ncat <<'E1' <<-\"E 2\"; run y\n'\nE1\n\t\"\n\tE 2\nrun z",
    "here-strings": 'run a <<< "b c" d',
    "operators without blanks": "run a&&run b;run c|cat>&2;run d",
    "comments": "# one 'two\nrun a#b '#c' \"#d\" # not me\n#run e",
    "reserved words as arguments": "run if then fi case esac for done { } ! time function [[",
    "words that tools take for syntax": "run =~ == = -- -1 1e-4 [ a ] a=[b,c] @x %y ^z ,",
    "values beside each other": "A=a; B=$A/b-$A; run $B/$A-$B$A",
    "a variable before a command is not its argument's": "A=1; A=2 run $A",
    "functions": "f() { run in; }\nf\nfunction g { run $A; }\nA=1 g",
    "groups": "{ (run a) }; if (run b) then { run c; } fi; (run a); { run b; run c; } >/dev/null; ! run d || :",
    "branches": "if true; then run a; else :; fi; case x in (a|b) : ;; x) run c ;; esac; [[ a =~ (b|a) ]] && run d",
    "loops": "for i in 1; do run x; done; while false; do :; done; for ((i=0;i<1;i++)); do run y; done",
    "arithmetic": "((x=1)); run a; if ((1 < 2)); then run b; fi",
    "parentheses within a substitution do not end it": "run a $(echo ')' '(' # )\n) >/dev/null; run b",
    "Windows' line ends": WINDOWS,
    "other scripts and emoji": "run é 日本語 😀 'ü ü'",
    "blanks that a shell does not split at": "run a\u00a0b a\u2003b a\x0bb 'a\x0cb' a\x85b",
    "unset": "A=1; unset A; A+=b; run $A",
    "exported, and declared": "export A=1 B='x y'; declare C=\"$B z\"; run $A \"$C\"",
    "a chain in which all succeed": "cd / && A=1 && run $A; run $A",
}  # fmt: skip


def said_by_bash(script: str, tmp_path: Path) -> list[list[str]]:
    said = tmp_path / "said"
    said.touch()
    head = 'run() { printf "%s\\0" "$#" "$@" >> "$SAID"; }\n'
    environment = {"SAID": str(said), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    assert BASH is not None
    subprocess.run([BASH, "-c", head + script], env=environment, cwd=tmp_path, timeout=20, check=True)
    words = said.read_bytes().decode().split("\0")[:-1]
    found = []
    while words:
        count = int(words[0])
        found.append(words[1 : count + 1])
        del words[: count + 1]
    return found


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize("name", SCRIPTS)
def test_words_are_those_that_bash_passes(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    ours = [words[1:] for words in commands(script) if words[0] == "run"]
    if name in ("parentheses within a substitution do not end it",):
        assert len(ours) == 2  # what it prints is not known
    elif name == "functions":
        assert ours == [["in"], ["$A"]]  # what it is called with is not known
    else:
        assert ours == said_by_bash(script.replace("\r\n", "\n"), tmp_path)


PARTS = [
    "a", " ", "'b  c'", '"$A"', "$A", "${A:-d e}", "\\ ", '"', "'", "${B}x", "~x", "; run ", '"${E[@]}"', "${E[@]}",
    "${E[*]}", '"${E[*]}"', "${B##*/}", "${B%.*}", "${N:-'q  r'}", '"${N:-"s  t"}"', "$'u\\tv'", '""', "''", "#", "=",
    "\\\n", "-", "&& run ", "${A+y}", "${N-w}", "; E+=(k); run ", "; A+=m; run ", "; B=$A$B; run ", "${E[1]}", "${E}",
    "if run i; then run t; fi; run ", "$N ", "!", "x=y", ">/dev/null ", "2>&1 ", "<<<h ", '${A:-"$B"}', "${N:=v w}",
    "; unset N; run ",
]  # fmt: skip
SAYING = """
run() { printf 'run\\0%s\\0' "$#" >&3; [ "$#" = 0 ] || printf '%s\\0' "$@" >&3; }
for text in "$@"; do printf 'text\\0' >&3; (eval "$text") 2>/dev/null; done 3>&1; true
"""


@pytest.mark.skipif(BASH is None, reason="no bash")
@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=9).map("".join), min_size=30, max_size=30))
def test_random_words_are_those_that_bash_passes(texts: list[str]) -> None:
    """Thirty texts for each start of bash."""
    texts = [f"A='x  y'; B=p/q.r.s; N=; E=(e1 'e 2' ''); run {text}" for text in texts]
    texts = [text for text in texts if not _is_refused(text) and _is_known(text)]
    assert BASH is not None
    done = subprocess.run([BASH, "-c", SAYING, "bash", *texts], capture_output=True, timeout=60, check=True)
    theirs = [_calls(said) for said in done.stdout.decode().split("text\0")[1:]]
    assert [[words[1:] for words in commands(text) if words[0] == "run"] for text in texts] == theirs


def _is_known(text: str) -> bool:
    """Whether all its words are known, and all its commands there."""
    found = read_commands(text, "run.sh")
    return not any(command.unresolved or command.words[0] not in ("run", "unset") for command in found)


def _calls(said: str) -> list[list[str]]:
    words, found = said.split("\0")[:-1], []
    while words:
        count = int(words[1])
        found.append(words[2 : count + 2])
        del words[: count + 2]
    return found


PIECES = [
    "a", " ", "'b'", '"$A"', "$A", "${A:-d e}", "\\ ", '"', "'", "\\", "\n", ";", "|", "&&", "#", "${B}x", "~x",
    "if", "then", "fi", "{", "}", "(", ")", ">", "2>&1", "for x in", "do", "done", "((", "))", "[[ a ]]", "!",
]  # fmt: skip


@pytest.mark.skipif(BASH is None, reason="no bash")
@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), min_size=40, max_size=40))
def test_texts_are_refused_where_bash_refuses_them(texts: list[str]) -> None:
    """Forty texts for each start of bash; where both take a text, that is compared above."""
    texts = [f"A='x  y'; B=z; run {text}" for text in texts]
    check = 'for text in "$@"; do (eval "f() { $text"$\'\\n}\') 2>/dev/null && echo 0 || echo 1; done'
    assert BASH is not None
    done = subprocess.run([BASH, "-c", check, "bash", *texts], capture_output=True, text=True, timeout=60, check=True)
    for text, status in zip(texts, done.stdout.split(), strict=True):
        if status == "0" or not re.search(r"\(|\[\[", text):  # what tests and arithmetic hold is not looked at
            assert _is_refused(text) == (status == "1"), text


def _is_refused(text: str) -> bool:
    try:
        read_commands(f"f() {{ {text}\n}}", "run.sh")
    except SpecError:
        return True
    return False


@pytest.mark.parametrize(
    ("text", "words", "unresolved"),
    [
        ("run $1 $@ $? x", ["$1", "$@", "$?", "x"], ["$1", "$@", "$?"]),
        ("run $HOME/x ${USER}", ["$HOME/x", "${USER}"], ["$HOME", "${USER}"]),
        ("run $(date +%F)/x `y z`", ["$(date +%F)/x", "`y z`"], ["$(date +%F)", "`y z`"]),
        ('run "$(a "b c")"', ['$(a "b c")'], ['$(a "b c")']),
        ("run $((1 + (2)))", ["$((1 + (2)))"], ["$((1 + (2)))"]),
        ("run *.py a?b", ["*.py", "a?b"], ["*.py", "a?b"]),
        ("run {a,b} {1..3}", ["{a,b}", "{1..3}"], ["{a,b}", "{1..3}"]),
        ("run ~/models ~bob", ["~/models", "~bob"], ["~", "~bob"]),
        ("A=x.y; run ${A/x/y} ${#A} ${A:0:1} ${A^^}", ["${A/x/y}", "${#A}", "${A:0:1}", "${A^^}"],
         ["${A/x/y}", "${#A}", "${A:0:1}", "${A^^}"]),
        ("run <(a b) c", ["<(a b)", "c"], ["<(a b)"]),
        ("read A; run $A", ["$A"], ["$A"]),
        ("for A in a b; do run $A; done", ["$A"], ["$A"]),
        ("OUT=saves/$(date +%F); run --output_dir $OUT/x", ["--output_dir", "saves/$(date +%F)/x"], ["$(date +%F)"]),
        ('D="--n $N --m 1"; run $D', ["--n", "$N", "--m", "1"], ["$N"]),
        ('D=(--n $N "$(a b)" c); run "${D[@]}"', ["--n", "$N", "$(a b)", "c"], ["$N", "$(a b)"]),
        ("A[1]=x; run $A ${A[1]}", ["$A", "${A[1]}"], ["$A", "${A[1]}"]),
        ("declare -A A=([a]=x); run ${A[a]}", ["${A[a]}"], ["${A[a]}"]),
        ("A=~/x; run $A/y", ["~/x/y"], ["~"]),
        ("run ${X?none}", ["${X?none}"], ["${X?none}"]),
        ("IFS=,; A=a,b; run $A", ["$A"], ["$A"]),
    ],
)  # fmt: skip
def test_what_only_running_the_text_would_tell_is_kept_and_listed(
    text: str, words: list[str], unresolved: list[str]
) -> None:
    command = only(text)
    assert (command.words[1:], command.unresolved) == (words, unresolved)


@pytest.mark.parametrize(
    "text",
    [
        'if [ "$1" = x ]; then A=a; else A=b; fi; run $A',
        "A=a; if x; then A=b; fi; run $A",
        "A=a; [ -z x ] && A=b; run $A",
        "A=a; test -f x && A=b; run $A",
        "A=a; x || A=b; run $A",
        "case $1 in a) A=a ;; *) A=b ;; esac; run $A",
        "A=a; while x; do A=b; done; run $A",
        "A=a; for i in 1 2; do run $A; A=b; done",
        "A=a; f() { run $A; }; A=b; f",
        "A=1; ((A++)); run $A",
        "A=1; f() { A=2; }; f; run $A",
    ],
)
def test_a_value_that_depends_on_the_way_the_text_runs_is_not_known(text: str) -> None:
    assert [(each.words, each.unresolved) for each in read_commands(text, "x") if each.words[0] == "run"] == [
        (["run", "$A"], ["$A"])
    ]


@pytest.mark.parametrize(
    "text",
    [
        "if x; then A=a; else A=a; fi; run $A",
        "if x; then A=b; run y; else A=a; run $A; fi",
        "A=a; (A=b); run $A",
        "A=a; while x; do y; done; run $A",
        "f() { local A=a; run $A; }",
        "cd x && A=a; run $A",
        "A=a; { run $A; }",
    ],
)
def test_a_value_that_is_the_same_on_every_way_is_known(text: str) -> None:
    assert only(text).words == ["run", "a"]


def test_the_environment_holds_what_is_exported_and_what_stands_before_the_command() -> None:
    text = "A=1\nexport B=2 C='x y'\nexport A\nD=4 B=5 run\nunset C\nE=6\nexport -n B\nrun2"
    first, second = (command.environment for command in read_commands(text, "x") if command.words[0] != "unset")
    assert first == {"A": "1", "B": "5", "C": "x y", "D": "4"}
    assert second == {"A": "1"}


def test_what_is_unknown_of_an_exported_variable_is_said_of_each_command_after_it() -> None:
    command = only("export N=$(nproc) M=1; run")
    assert (command.environment, command.unresolved) == ({"N": "$(nproc)", "M": "1"}, ["$(nproc)"])
    assert only("export N=$(nproc); N=1 run").unresolved == []


def test_our_own_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "hunter2")
    command = only("run $SECRET_OF_OURS ${SECRET_OF_OURS:-d}")
    assert (command.words, command.environment) == (["run", "$SECRET_OF_OURS", "d"], {})


def test_nothing_is_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for text in (
        f"run $(touch {victim})",
        f"touch {victim}",
        f"run `touch {victim}` > {victim}",
        f"eval 'x > {victim}'",
    ):
        read_commands(text, "x")
    assert not victim.exists()


def test_comments_and_lines_belong_to_the_command_below_them() -> None:
    text = (
        "#!/bin/bash\n# above\n\n#  and more\nA=1\nrun \\\n  a  # beside\n\nif x; then\n  # inner\n  run b\nfi\n# tail"
    )
    first, x, last = read_commands(text, "x")
    assert (first.comments, first.line) == (["above", "and more", "beside"], 6)
    assert (x.comments, x.line) == ([], 9)
    assert (last.comments, last.line) == (["inner"], 11)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("run 'a\nb", "run.sh:1:5", "' is never closed"),
        ('x\nrun a"b\n', "run.sh:2:6", '" is never closed'),
        ("run $(a", "run.sh:1:6", "( is never closed"),
        ("run `a", "run.sh:1:5", "` is never closed"),
        ("run ${A", "run.sh:1:5", "${ is never closed"),
        ("if x; then run", "run.sh:1:15", "`fi` expected, found the end"),
        ("for a in b; run; done", "run.sh:1:13", "`do` expected, found `run`"),
        ("run a )", "run.sh:1:7", "unexpected `)`"),
        ("run | | x", "run.sh:1:7", "unexpected `|`"),
        ("run >", "run.sh:1:5", "a file is missing after >"),
        ("fi", "run.sh:1:1", "unexpected `fi`"),
        ("run a\0b", "run.sh:1:6", "a null byte is no text"),
    ],
)
def test_bad_syntax_is_an_error_with_line_and_column(text: str, place: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_commands(text, "run.sh")
    assert f"no shell text that can be read: {message}\n  --> {place}\n" in caught.value.message + "\n"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "A=1", "\ufeff", "> file", "   \\\n  "])
def test_a_text_may_hold_no_command(text: str) -> None:
    assert read_commands(text, "x") == []


HOSTILE = {
    "substitutions within each other": "run " + "$(" * 200_000,
    "closed ones": "run " + "$(" * 100_000 + ")" * 100_000,
    "quotes within each other": "run " + '"${a:-' * 100_000,
    "groups": "{ " * 100_000,
    "parentheses": "( " * 100_000,
    "arithmetic": "((" * 30_000,
    "ifs": "if " * 100_000,
    "functions": "f() { " * 50_000,
    "functions without a body": "f() " * 50_000,
    "variables that double": "A=xxxxxxxx;" + "A=$A$A;" * 60 + "run $A",
    "commands": "a\n" * 300_000,
    "variables": "".join(f"a{number}=1\n" for number in range(90_000)),
    "exported ones": "export " + " ".join(f"a{number}=1" for number in range(900)) + "\nrun",
    "copies of one": "A=" + "x" * 100_000 + "; run" + " $A" * 100_000,
    "too long": "a" * (MAX_CHARS + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_that_is_no_sensible_script_is_an_error(name: str) -> None:
    with pytest.raises(SpecError):
        read_commands(HOSTILE[name], "run.sh")


LARGE = {
    "words": "run " + "a " * 150_000,
    "one word": "run " + "a" * 300_000,
    "brackets": "run " + "[" * 300_000,
    "commas": "run {" + "," * 300_000,
    "braces": "run " + "{a" * 150_000,
    "escapes": "run " + "\\a" * 150_000,
    "quotes": "run " + "''" * 150_000,
    "substitutions": "run " + "$(a)" * 75_000,
    "dollars": "run " + "$" * 300_000,
    "here-documents": "cat <<EOF\n" * 30_000,
    "comments": "#\n" * 150_000 + "run",
    "an array": "A=(" + "a " * 150_000 + ")\nrun ${A[1]}",
    "cut ends": "A=" + "a/" * 100 + "\n" + "run ${A##*/}\n" * 2000,
}


@pytest.mark.timeout(60)  # were one of these quadratic, it would be minutes
@pytest.mark.parametrize("name", LARGE)
def test_a_large_text_is_read_in_a_time_that_grows_with_its_length(name: str) -> None:
    assert read_commands(LARGE[name], "run.sh")


def test_lone_surrogates_are_kept() -> None:
    """Bytes of the command line that are no UTF-8: the spec refuses them, with their place."""
    assert commands("run a\udc80 '\ud800'") == [["run", "a\udc80", "\ud800"]]
