"""LLaMA-Factory's arguments, read with ast from the source files of the installation that will run.

Of each field of its argument dataclasses and of transformers' TrainingArguments: name, types, default, choices, help
and commands. Nothing is imported: it takes 0.2 s, and needs no installation that works.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.upstream.installation import Installation, parse_source

# What each command reads (hparams/parser.py); export is as api.
_CLASSES = {
    "ModelArguments": frozenset({"train", "api", "export"}),
    "DataArguments": frozenset({"train", "api", "export"}),
    "TrainingArguments": frozenset({"train"}),
    "FinetuningArguments": frozenset({"train", "api", "export"}),
    "GeneratingArguments": frozenset({"train", "api", "export"}),
}
_FILES = ("model_args.py", "data_args.py", "training_args.py", "finetuning_args.py", "generating_args.py")
_KINDS = {
    **{name: name for name in ("int", "float", "bool", "str")},
    "Path": "str",
    **dict.fromkeys(("list", "List", "Sequence", "tuple", "Tuple"), "list"),
    **dict.fromkeys(("dict", "Dict", "Mapping"), "dict"),
}


def read_arguments(installation: Installation) -> dict[str, Argument]:
    """Every argument of the installation by name.

    Raises:
        PrerequisiteError: the source files are not there, or are not as LLaMA-Factory 0.9 has them.
    """
    package, training_args = installation.package, installation.training_args
    if package is None or training_args is None:
        missing = "llamafactory" if package is None else "transformers, whose arguments LLaMA-Factory takes"
        raise PrerequisiteError(
            f"{installation.cli}: its Python, {installation.python}, has no package {missing}",
            f"{installation.python} -m pip install llamafactory",
        )
    own = [parse_source(package / "hparams" / name) for name in _FILES]
    folder = training_args.parent
    theirs = [parse_source(folder / name) for name in ("training_args.py", "training_args_seq2seq.py")]
    enums = _enums([package / "extras" / "constants.py", folder / "trainer_utils.py"], theirs)
    split = _split_names(own)
    base = _Classes(theirs, {}, enums, split, installation.versions)
    # Both have a class TrainingArguments: LLaMA-Factory's is looked up first, its bases then in transformers'.
    classes = _Classes(own, {name: base.fields(name) for name in base.nodes}, enums, split, installation.versions)
    found: dict[str, Argument] = {}
    for name, commands in _CLASSES.items():
        if name not in classes.nodes:
            raise PrerequisiteError(f"{package}/hparams has no class {name}", 'pip install "llamafactory>=0.9.5"')
        found |= {key: replace(argument, commands=commands) for key, argument in classes.fields(name).items()}
    return found


class _Classes:
    """The dataclasses of some modules, and the arguments they declare."""

    def __init__(
        self,
        modules: Iterable[ast.Module],
        elsewhere: Mapping[str, dict[str, Argument]],
        enums: Mapping[str, dict[str, str]],
        split: frozenset[str],
        versions: Mapping[str, str],
    ) -> None:
        self.nodes: dict[str, ast.ClassDef] = {}
        self.aliases: dict[str, list[str]] = {}
        self.elsewhere = elsewhere
        self.enums = enums
        self.split = split
        self.versions = versions
        for module in modules:
            for node in _statements(module.body):
                if isinstance(node, ast.ClassDef):
                    self.nodes[node.name] = node
                elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                    # BaseTrainingArguments = Seq2SeqTrainingArguments, in one branch of an if
                    for target in node.targets:
                        if isinstance(target, ast.Name):
                            self.aliases.setdefault(target.id, []).append(node.value.id)

    def fields(self, name: str) -> dict[str, Argument]:
        """A class's own fields over those of its bases, the leftmost base over the others."""
        node = self.nodes.get(name)
        if node is None:
            named = [self.elsewhere[each] for each in [name, *self.aliases.get(name, [])] if each in self.elsewhere]
            return named[0] if named else {}
        found: dict[str, Argument] = {}
        for base in reversed(node.bases):
            # A base of the same name is the one of the other modules.
            label = _last_name(base)
            found |= self.elsewhere.get(label, {}) if label == name else self.fields(label)
        constants: dict[str, Any] = {
            f"{enum}.{name}": value for enum, members in self.enums.items() for name, value in members.items()
        }
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                key = statement.target.id
                if _last_name(statement.annotation) == "ClassVar" or _is_set_later(statement.value):
                    found.pop(key, None)
                else:
                    found[key] = self._argument(key, statement.annotation, statement.value, constants)
            else:
                constants |= self._assigned(statement)
        return found

    def _assigned(self, statement: ast.stmt) -> dict[str, Any]:
        """Names that a statement of a class body gives a value: transformers' default_optim, which torch decides."""
        if isinstance(statement, ast.If):
            holds = _holds(statement.test, self.versions)
            taken = statement.body if holds else statement.orelse
            taken = [*statement.body, *statement.orelse] if holds is None else taken
            inner = {name: value for each in taken for name, value in self._assigned(each).items()}
            return dict.fromkeys(inner, COMPUTED) if holds is None else inner
        if isinstance(statement, ast.Assign):
            value = _literal(statement.value, {})
            return {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
        return {}

    def _argument(
        self, name: str, annotation: ast.expr, value: ast.expr | None, constants: Mapping[str, Any]
    ) -> Argument:
        default, text, listed = self._declared(value, constants)
        kinds: set[str] = set()
        literals: list[Any] = []
        members: list[str] = []
        optional, known = False, True
        for part in _alternatives(annotation):
            label = _last_name(part)
            if (isinstance(part, ast.Constant) and part.value is None) or label == "NoneType":
                optional = True
            elif label == "Literal" and isinstance(part, ast.Subscript):
                literals += [each.value for each in ast.walk(part.slice) if isinstance(each, ast.Constant)]
            elif label in self.enums:
                members += self.enums[label].values()
            elif label in _KINDS:
                kinds.add(_KINDS[label])
            else:
                known = False
        optional = optional or None in literals
        values = [value for value in literals if value is not None]
        # transformers turns the text of `SomeEnum | str` into a member, so only members will do. `Literal | str` is
        # any text.
        closed = bool(members or values) and not (kinds - {"str"}) and not (values and kinds)
        choices = tuple(dict.fromkeys([*members, *values])) if closed and known else None
        choices = choices or listed
        kinds |= {type(value).__name__ for value in [*members, *values]}
        if name in self.split or (not self.split and "str" in kinds and not closed):
            kinds.add("list")
        checked = frozenset(kinds) if known else frozenset[str]()
        return Argument(name, checked, choices, optional, frozenset(), default, text)

    def _declared(
        self, value: ast.expr | None, constants: Mapping[str, Any]
    ) -> tuple[Any, str, tuple[str, ...] | None]:
        """Default, help and choices: of a value, or field(default=..., metadata={"help": ..., "choices": ...})."""
        if not (isinstance(value, ast.Call) and _last_name(value.func) == "field"):
            return COMPUTED if value is None else _literal(value, constants), "", None
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        factory, metadata = keywords.get("default_factory"), keywords.get("metadata")
        default = _literal(keywords["default"], constants) if "default" in keywords else COMPUTED
        if isinstance(factory, ast.Lambda):
            default = _literal(factory.body, constants)
        elif factory is not None:
            default = {"list": [], "dict": {}}.get(_last_name(factory), COMPUTED)
        pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
        about = {ast.unparse(key).strip("'"): _literal(item, constants) for key, item in pairs if key}
        text, listed = about.get("help"), about.get("choices")
        text = " ".join(text.split()) if isinstance(text, str) else ""
        return default, text, tuple(listed) if isinstance(listed, list) else None


def _literal(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """The JSON value that an expression plainly is, or COMPUTED; `constants` has names, and an enum's as ENUM.NAME."""
    if isinstance(node, ast.Name | ast.Attribute):
        return constants.get(".".join(ast.unparse(node).split(".")[-2:]), COMPUTED)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):  # a long help text; 768 * 768
        left, right = _literal(node.left, constants), _literal(node.right, constants)
        if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            return left + right
        product = isinstance(node.op, ast.Mult) and isinstance(left, int) and isinstance(right, int)
        return left * right if product else COMPUTED
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return COMPUTED
    return list(value) if isinstance(value, tuple) else value


def _holds(test: ast.expr, versions: Mapping[str, str]) -> bool | None:
    """Whether a condition on torch holds in the installation; None: it is about something else."""
    if isinstance(test, ast.Call) and _last_name(test.func) == "is_torch_available":
        return "torch" in versions
    wanted = re.fullmatch(r"is_torch_greater_or_equal_than_(\d+)_(\d+)", _last_name(test))
    have = re.match(r"(\d+)\.(\d+)", versions.get("torch", ""))
    if wanted is None or have is None:
        return None
    return (int(have[1]), int(have[2])) >= (int(wanted[1]), int(wanted[2]))


def _enums(paths: Iterable[Path], modules: Iterable[ast.Module]) -> dict[str, dict[str, str]]:
    """The members of string enums, name -> value, by class name; a file that is not there has none."""
    trees = [*(parse_source(path) for path in paths if path.is_file()), *modules]
    found: dict[str, dict[str, str]] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(_last_name(base).endswith("Enum") for base in node.bases):
                members = {
                    target.id: each.value.value
                    for each in node.body
                    if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
                    for target in each.targets
                    if isinstance(target, ast.Name) and isinstance(each.value.value, str)
                }
                if members:
                    found[node.name] = members
    return found


def _split_names(modules: Iterable[ast.Module]) -> frozenset[str]:
    """Arguments that LLaMA-Factory splits at commas where they are text, and takes as a list too: split_arg(self.X)."""
    return frozenset(
        argument.attr
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and _last_name(node.func) == "split_arg"
        for argument in node.args
        if isinstance(argument, ast.Attribute)
    )


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those in the branches of an if included."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])


def _is_set_later(default: ast.expr | None) -> bool:
    """Whether a field is derived, not given: field(init=False)."""
    keywords = default.keywords if isinstance(default, ast.Call) else ()
    return any(each.arg == "init" and ast.unparse(each.value) == "False" for each in keywords)


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The members of X | Y, Union[X, Y] and Optional[X], text annotations included."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _alternatives(ast.parse(node.value, mode="eval").body)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    elif isinstance(node, ast.Subscript) and _last_name(node) in ("Union", "Optional"):
        for item in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            yield from _alternatives(item)
        if _last_name(node) == "Optional":
            yield ast.Constant(None)
    else:
        yield node


def _last_name(node: ast.expr) -> str:
    """'Optional' of typing.Optional[str]; '' of what has no name."""
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
