"""What is inserted into which upstream repository, and beside which statement."""

from __future__ import annotations

import ast
import builtins
import difflib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edits import InputError, PatchError, Place, Source

KINDS = {"assignment": (ast.Assign, ast.AnnAssign), "expression": (ast.Expr,)}
EXITS = {f"{name}({code})" for name in ("sys.exit", "exit", "quit") for code in ("", "0", "None")}
EXITS |= {"os._exit(0)", "raise SystemExit", "raise SystemExit()", "raise SystemExit(0)"}
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Insertion:
    """Lines before or after the statement of a kind in a function that makes a call.

    There must be one such statement; with `each` at least one, and each gets the lines. The kind
    "last" is the function's last statement, whatever it calls.
    """

    name: str
    reason: str
    file: str
    function: str
    place: str
    statement: str
    lines: tuple[str, ...]
    calls: str = ""  # a leading dot means a method; * stands for any letters
    each: bool = False

    def __post_init__(self) -> None:
        if self.place not in ("before", "after"):
            raise InputError(f"{self.name}: place is {self.place!r}, expected before or after")
        if self.statement not in (*KINDS, "last"):
            raise InputError(
                f"{self.name}: statement is {self.statement!r}, expected {[*KINDS, 'last']}"
            )

    def __str__(self) -> str:
        if self.statement == "last":
            return f"{self.file}: anchor {self.name!r} (the last statement in {self.function})"
        which = "each" if self.each else "the one"
        what = f"{which} {self.statement} in {self.function} that calls {self.calls}"
        return f"{self.file}: anchor {self.name!r} ({what})"


@dataclass(frozen=True)
class Upstream:
    """A repository and all that is inserted there."""

    name: str
    repository: str
    model: str  # its name, as one of the files has it
    insertions: tuple[Insertion, ...]
    script: str = ""
    refused: str = ""  # what to do instead, where nothing is inserted

    @property
    def files(self) -> tuple[str, ...]:
        files = [insertion.file for insertion in self.insertions]
        return tuple(dict.fromkeys(files or [self.script]))


def load_upstreams(folder: Path) -> list[Upstream]:
    """The upstreams that the folder's TOML files describe."""
    toml = toml_module()
    return [one for path in sorted(folder.glob("*.toml")) for one in _upstreams(path, toml)]


def toml_module() -> Any:
    """`tomllib`, or on Python 3.10 what reads the same there."""
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            try:
                from pip._vendor import tomli as tomllib
            except ImportError:
                raise InputError(
                    "no TOML reader: use Python 3.11 or newer, or `pip install tomli`"
                ) from None
    return tomllib


def _upstreams(path: Path, toml: Any) -> list[Upstream]:
    try:
        data = toml.loads(path.read_text(encoding="utf-8"))
        return [
            Upstream(**tree, insertions=() if "refused" in tree else _insertions(data, tree))
            for tree in data["tree"]
        ]
    except (toml.TOMLDecodeError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{path.name}: {type(error).__name__} {error}") from None


def _insertions(data: dict[str, Any], tree: dict[str, str]) -> tuple[Insertion, ...]:
    filled = [
        {
            **entry,
            "file": entry["file"].replace("{script}", tree.get("script", "")),
            "lines": tuple(entry["lines"].strip("\n").split("\n")),
        }
        for entry in data["insertion"]
    ]
    return tuple(Insertion(**entry) for entry in filled)


def parse(source: Source) -> ast.Module:
    """The file's syntax tree; PatchError with the line where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream's own escapes
            return ast.parse(source.text)
    except SyntaxError as error:
        where = f"{source.file}, line {error.lineno}"
        raise PatchError(
            f"{where}: does not parse ({error.msg}); solve merge conflicts first, if there are any"
        ) from None
    except ValueError as error:
        raise PatchError(f"{source.file}: does not parse ({error})") from None


def find_places(upstream: Upstream, sources: Mapping[str, Source]) -> dict[str, list[Place]]:
    """Insertion -> where its lines go; PatchError with the nearest candidates for no such place.

    Lines may use the names that an earlier insertion binds above them in the same function.
    """
    found: dict[str, list[Place]] = {}
    for number, one in enumerate(upstream.insertions):
        before = [
            place
            for other in upstream.insertions[:number]
            if (other.file, other.function) == (one.file, one.function)
            for place in found[other.name]
        ]
        found[one.name] = _find_places(one, sources[one.file], before)
    return found


def _find_places(insertion: Insertion, source: Source, before: list[Place]) -> list[Place]:
    module = parse(source)
    function, anchors = find_anchors(insertion, module)
    places = []
    for statement in anchors:
        _check_alone(insertion, statement, source)
        indent = re.match(r"[ \t]*", source.lines[statement.lineno - 1])[0]
        names = _code_names(insertion, function, statement)
        lines = tuple(indent + _filled(line, names, insertion) for line in insertion.lines)
        index = statement.lineno - 1 if insertion.place == "before" else statement.end_lineno
        above = [p for p in before if p.index <= index and indent.startswith(p.indent)]
        _check_names(insertion, lines, module, function, index, above)
        places.append(Place(index, lines, statement.lineno))
    return places


def find_anchors(
    insertion: Insertion, module: ast.Module
) -> tuple[ast.FunctionDef, list[ast.stmt]]:
    """The function and its statement, or with `each` all of them."""
    named = [function for function in _functions(module) if function.name == insertion.function]
    found = [(function, s) for function in named for s in _matches(insertion, function)]
    if len(named) == 1 and found and (insertion.each or len(found) == 1):
        anchors = [statement for _, statement in found]
        if insertion.statement == "last":
            _check_end_reached(insertion, named[0])
        if insertion.each:
            _check_all_reached(insertion, module, anchors)
        return named[0], anchors
    if not named:
        problem = f"there is no function {insertion.function}; {_near_function(insertion, module)}"
    elif len(named) > 1:
        lines = ", ".join(str(function.lineno) for function in named)
        problem = f"there are {len(named)} functions {insertion.function}, on lines {lines}"
    elif found:
        lines = ", ".join(str(statement.lineno) for _, statement in found)
        problem = f"found {len(found)} times, on lines {lines}"
    else:
        problem = f"found 0 times; {_near_statement(insertion, module, named[0])}"
    raise PatchError(f"{insertion}: {problem}")


def called(statement: ast.stmt) -> Iterator[tuple[str, ast.Call]]:
    """Names of the functions and methods (with a dot) that a statement's value calls."""
    value = getattr(statement, "value", None)
    for node in ast.walk(value) if isinstance(value, ast.AST) else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield f".{node.func.attr}", node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node


def anchor_calls(insertion: Insertion, node: ast.AST) -> list[ast.Call]:
    """The calls in a node that the insertion names: `function`, `.method` or `package.Name*`."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    if insertion.calls.startswith("."):
        methods = [call for call in calls if isinstance(call.func, ast.Attribute)]
        return [c for c in methods if fnmatchcase(f".{c.func.attr}", insertion.calls)]
    named = [(ast.unparse(call.func), call) for call in calls]
    dots = insertion.calls.count(".")
    return [
        c for name, c in named if fnmatchcase(name, insertion.calls) and name.count(".") == dots
    ]


def statements(function: ast.AST) -> Iterator[ast.stmt]:
    """All statements below a node in order, nested ones too, but not those of nested functions."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, NESTED):
            yield from statements(node)


def _functions(module: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in module.body if isinstance(node, FUNCTIONS)]


def _matches(insertion: Insertion, function: ast.AST) -> list[ast.stmt]:
    if insertion.statement == "last":
        return function.body[-1:]
    kinds = KINDS[insertion.statement]
    found = (s for s in statements(function) if isinstance(s, kinds))
    return [s for s in found if s.value is not None and anchor_calls(insertion, s.value)]


def _check_all_reached(insertion: Insertion, module: ast.Module, anchors: list[ast.stmt]) -> None:
    """Every such call of the file must stand in an anchor, or a pipeline would get no line."""
    reached = {id(call) for anchor in anchors for call in anchor_calls(insertion, anchor)}
    missed = [c for c in anchor_calls(insertion, module) if id(c) not in reached]
    if missed:
        listed = ", ".join(f"line {call.lineno} calls {ast.unparse(call.func)}" for call in missed)
        raise PatchError(f"{insertion}: not in such a statement: {listed}")


def _check_end_reached(insertion: Insertion, function: ast.FunctionDef) -> None:
    """No way out of the function may go past its end."""
    ends = [s for s in statements(function) if isinstance(s, ast.Return) or ast.unparse(s) in EXITS]
    if ends:
        lines = ", ".join(str(statement.lineno) for statement in ends)
        raise PatchError(
            f"{insertion}: {function.name} returns on line {lines}, where the lines "
            "at its end are not reached; let it run to its end"
        )


def _near_function(insertion: Insertion, module: ast.Module) -> str:
    functions = {function.name: function for function in _functions(module)}
    same = [f for f in functions.values() if insertion.calls and _matches(insertion, f)]
    close = difflib.get_close_matches(insertion.function, functions, 3, 0.4)
    if same:
        return "such a statement is in " + ", ".join(
            f"{f.name} (line {_matches(insertion, f)[0].lineno})" for f in same
        )
    near = close or list(functions)[:3]
    listed = ", ".join(f"{name} (line {functions[name].lineno})" for name in near)
    return f"nearest functions: {listed}" if near else "there are no functions at all"


def _near_statement(insertion: Insertion, module: ast.Module, function: ast.FunctionDef) -> str:
    elsewhere = [(f.name, s) for f in _functions(module) for s in _matches(insertion, f)]
    elsewhere += [("no function", s) for s in _matches(insertion, module)]
    if elsewhere:
        return "such a statement is in " + ", ".join(
            f"{name} (line {s.lineno})" for name, s in elsewhere
        )
    calls = [(name, s.lineno) for s in statements(function) for name, _ in called(s)]
    close = difflib.get_close_matches(insertion.calls, {name for name, _ in calls}, 3, 0.5)
    near = [pair for pair in calls if pair[0] in close][:3] or calls[-3:]
    listed = ", ".join(f"line {line} calls {name}" for name, line in near)
    return f"nearest: {listed}" if near else f"{insertion.function} calls nothing"


def _check_alone(insertion: Insertion, statement: ast.stmt, source: Source) -> None:
    """Whole lines can only go beside a statement that has its lines for itself."""
    first = source.lines[statement.lineno - 1].encode()[: statement.col_offset]
    last = source.lines[statement.end_lineno - 1].encode()[statement.end_col_offset :]
    if first.strip() or not re.match(rb"\s*(#|$)", last):
        raise PatchError(
            f"{insertion}: line {statement.lineno} holds more than this statement, and whole lines "
            "are inserted; give the statement a line of its own"
        )


def _code_names(
    insertion: Insertion, function: ast.FunctionDef, statement: ast.stmt
) -> dict[str, str]:
    """What {object}, {target} and {parameter} of an inserted line stand for in this code."""
    names = {}
    for call in anchor_calls(insertion, statement)[:1]:
        if isinstance(call.func, ast.Attribute):
            names["object"] = ast.unparse(call.func.value)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        names["target"] = ast.unparse(target)
    parameters = [*function.args.posonlyargs, *function.args.args]
    return names | ({"parameter": parameters[0].arg} if parameters else {})


def _filled(line: str, names: dict[str, str], insertion: Insertion) -> str:
    for key in re.findall(r"\{(object|target|parameter)\}", line):
        name = names.get(key)
        if name is None or not re.fullmatch(r"[^\W\d][\w.]*", name):
            raise PatchError(
                f"{insertion}: its {key} is {name or 'not there'}, expected a plain name"
            )
        line = line.replace(f"{{{key}}}", name)
    return line


def _check_names(
    insertion: Insertion,
    lines: tuple[str, ...],
    module: ast.Module,
    function: ast.FunctionDef,
    index: int,
    above: list[Place],
) -> None:
    """What the inserted lines use must be known where they stand."""
    inserted = _parsed(lines)
    before = [node for node in ast.walk(function) if getattr(node, "lineno", index + 1) <= index]
    known = {*dir(builtins), *_bound(ast.walk(inserted)), *_bound(before)}
    known |= {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    known |= set(_bound(_top_level(module)))
    known |= {name for place in above for name in _bound(ast.walk(_parsed(place.lines)))}
    used = {n.id for n in ast.walk(inserted) if isinstance(n, ast.Name)}
    if "*" not in known and used - known:
        unknown = ", ".join(sorted(used - known))
        raise PatchError(
            f"{insertion}: found, but the inserted lines use {unknown}, which "
            f"{insertion.function} does not know there (line {index})"
        )


def _parsed(lines: tuple[str, ...]) -> ast.Module:
    return ast.parse(textwrap.dedent("\n".join(lines)))


def _top_level(module: ast.Module) -> Iterator[ast.AST]:
    for statement in statements(module):
        yield statement
        if not isinstance(statement, NESTED):
            yield from ast.walk(statement)


def _bound(nodes: Any) -> Iterator[str]:
    """Names that these nodes give a value to; "*" for a star import."""
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, NESTED):
            yield node.name
