"""LLaMA-Factory's arguments, read with ast from its source: it takes 0.2 s, and a broken installation will do."""

import ast
import itertools
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.upstream.installation import Installation, parse_source

_PARTS = ("model", "data", "training", "finetuning", "generating")  # of hparams/
_KINDS = {**{name: name for name in ("int", "float", "bool", "str", "list", "dict")}, "Path": "str"}


def read_arguments(installation: Installation) -> dict[str, Argument]:
    """Every argument by name. PrerequisiteError: the source is not there, or not as LLaMA-Factory 0.9 has it."""
    package, transformers = installation.package, installation.transformers
    if package is None or transformers is None:
        missing = "llamafactory" if package is None else "transformers, whose arguments LLaMA-Factory takes"
        raise PrerequisiteError(
            f"{installation.cli}: its Python, {installation.python}, has no package {missing}",
            f"{installation.python} -m pip install llamafactory",
        )
    own = [parse_source(package / "hparams" / f"{part}_args.py")[0] for part in _PARTS]
    theirs = [parse_source(transformers / name)[0] for name in ("training_args.py", "training_args_seq2seq.py")]
    others = [package / "extras" / "constants.py", transformers / "trainer_utils.py"]
    enums = _enums([*(parse_source(path)[0] for path in others), *theirs])
    base = _Classes(theirs, {}, enums).fields("Seq2SeqTrainingArguments")
    classes = _Classes(own, base, enums)
    found: dict[str, Argument] = {}
    for part in _PARTS:
        name = f"{part.title()}Arguments"
        commands = frozenset({"train"} if part == "training" else {"train", "api", "export"})  # hparams/parser.py
        if name not in classes.nodes:
            raise PrerequisiteError(f"{package}/hparams has no class {name}", 'pip install "llamafactory>=0.9.5"')
        declared = classes.fields(name)
        found |= {key: Argument(key, commands=commands, **each) for key, each in declared.items()}
    return found


class _Classes:
    """The dataclasses of some modules. `base` has the fields of transformers' class, on which LLaMA-Factory builds."""

    def __init__(self, modules: list[ast.Module], base: dict[str, Any], enums: dict[str, dict[str, str]]) -> None:
        nodes = [node for module in modules for node in ast.walk(module)]
        self.nodes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.base, self.enums = base, enums
        calls = [node for node in nodes if isinstance(node, ast.Call) and _name(node.func) == "split_arg"]
        # split_arg(self.X): text is split at commas, and a list is taken too
        self.split = {each.attr for call in calls for each in call.args if isinstance(each, ast.Attribute)}
        self.constants = {f"{enum}.{key}": value for enum, each in enums.items() for key, value in each.items()}

    def fields(self, name: str) -> dict[str, dict[str, Any]]:
        """What Argument is made of, by name: a class's own over those of its bases, the left base over the others."""
        if name not in self.nodes:  # BaseTrainingArguments, as LLaMA-Factory calls transformers' class
            return self.base if name.endswith("TrainingArguments") else {}
        found: dict[str, dict[str, Any]] = {}
        for base in reversed(self.nodes[name].bases):
            found |= self.fields(_name(base))
        for each in self.nodes[name].body:
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                given = each.value.keywords if isinstance(each.value, ast.Call) else []
                keywords = {keyword.arg: keyword.value for keyword in given}
                if _name(each.annotation) == "ClassVar" or ast.unparse(keywords.get("init", each.target)) == "False":
                    found.pop(each.target.id, None)  # it is derived, not given
                else:
                    found[each.target.id] = self._argument(each, keywords)
        return found

    def _argument(self, field: ast.AnnAssign, keywords: dict[str | None, ast.expr]) -> dict[str, Any]:
        is_field = isinstance(field.value, ast.Call) and _name(field.value.func) == "field"
        default = keywords.get("default") if is_field else field.value
        factory, metadata = keywords.get("default_factory"), keywords.get("metadata")
        if isinstance(factory, ast.Lambda):
            default = factory.body
        elif factory is not None:
            default = ast.parse({"list": "[]", "dict": "{}"}.get(_name(factory), "COMPUTED"), mode="eval").body
        pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
        about = {ast.unparse(key).strip("'"): self._literal(value) for key, value in pairs if key}
        kinds, choices, optional = self._types(field.annotation)
        if isinstance(field.target, ast.Name) and field.target.id in self.split:
            kinds |= {"list"}
        return {
            "kinds": frozenset(kinds),
            "choices": tuple(about["choices"]) if isinstance(about.get("choices"), list) else choices,
            "optional": optional,
            "default": COMPUTED if default is None else self._literal(default),
            "help": " ".join(str(about.get("help", "")).split()),
        }

    def _types(self, annotation: ast.expr) -> tuple[set[str], tuple[Any, ...] | None, bool]:
        """Kinds (none: a type that is not known here), choices, and whether it may be null."""
        plain: set[str] = set()
        literals: list[Any] = []
        members: list[str] = []
        for part in _alternatives(annotation):
            label = _name(part)
            if label == "Literal" and isinstance(part, ast.Subscript):
                literals += [each.value for each in ast.walk(part.slice) if isinstance(each, ast.Constant)]
            elif isinstance(part, ast.Constant) and part.value is None:
                literals.append(None)
            elif label in self.enums:
                members += self.enums[label].values()
            else:
                plain.add(_KINDS.get(label.lower() if label in ("List", "Dict") else label, ""))
        optional = None in literals
        values = [value for value in literals if value is not None]
        # transformers makes a member of the text of `SomeEnum | str`: no other will do. `Literal | str` is any text.
        is_closed = bool(members or values) and plain <= (set() if values else {"str"})
        kinds = plain | {type(value).__name__ for value in [*members, *values]}
        choices = tuple(dict.fromkeys([*members, *values])) if is_closed else None
        return set() if "" in plain else kinds, choices, optional

    def _literal(self, node: ast.expr) -> Any:
        """The JSON value that an expression plainly is, or COMPUTED."""
        if isinstance(node, ast.Attribute):  # a member of an enum
            return self.constants.get(ast.unparse(node), COMPUTED)
        if isinstance(node, ast.BinOp):  # a long help text; 768 * 768
            left, right = self._literal(node.left), self._literal(node.right)
            if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
                return left + right
            is_product = isinstance(node.op, ast.Mult) and isinstance(left, int) and isinstance(right, int)
            return left * right if is_product else COMPUTED
        try:
            value = ast.literal_eval(node)
        except ValueError:
            return COMPUTED
        return list(value) if isinstance(value, tuple) else value


def _enums(modules: list[ast.Module]) -> dict[str, dict[str, str]]:
    """The members of string enums, name -> value, by class name."""
    classes = [node for module in modules for node in module.body if isinstance(node, ast.ClassDef)]
    return {
        node.name: {
            _name(each.targets[0]): each.value.value
            for each in node.body
            if isinstance(each, ast.Assign)
            and isinstance(each.value, ast.Constant)
            and isinstance(each.value.value, str)
        }
        for node in classes
        if any(_name(base).endswith("Enum") for base in node.bases)
    }


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The members of X | Y, Union[X, Y] and Optional[X], text annotations included."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _alternatives(ast.parse(node.value, mode="eval").body)
    elif isinstance(node, ast.BinOp):
        yield from itertools.chain(_alternatives(node.left), _alternatives(node.right))
    elif isinstance(node, ast.Subscript) and _name(node) in ("Union", "Optional"):
        for item in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            yield from _alternatives(item)
        if _name(node) == "Optional":
            yield ast.Constant(None)
    else:
        yield node


def _name(node: ast.expr) -> str:
    """'Optional' of typing.Optional[str]; '' of what has no name."""
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
