"""The rules of the house, held by reading the source: who imports whom, and what product code never does."""

from __future__ import annotations

import ast
import configparser
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("server", "pilot", "harvester")
PACKAGES = ("common", *PROGRAMS)
MAX_LINES = 600
OLDEST = ("common", "pilot")
"""These run on Python 3.9, whatever a worker node has."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every product module by its path, such as ``server/engine/match.py``."""
    found = {path.relative_to(ROOT).as_posix(): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(found) >= 20, "the product's modules were not found"
    return found


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"), name)


def below(*folders: str) -> list[str]:
    return sorted(name for name in modules() if name.startswith(tuple(f"{folder}/" for folder in folders)))


def imports(name: str, source: ast.Module) -> Iterator[str]:
    """Every dotted name that the module imports, wherever in it, relative ones made absolute."""
    package = name.split("/")[:-1]
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def imported(name: str, source: ast.Module, *packages: str) -> list[str]:
    return [
        found
        for found in imports(name, source)
        if any(found == package or found.startswith(f"{package}.") for package in packages)
    ]


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for the expression a.b.c, and an empty string for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


# --- the rules: each is a function from a module to its offences, so that it can be tried on bad code too --------------


HARVESTERS_TABLES = ("harvester/store.py", "harvester/steering_store.py", "harvester/direct/book.py")


def forbidden_imports(name: str, source: ast.Module) -> list[str]:
    package = name.split("/")[0]
    allowed = {"common", package}
    offences = imported(name, source, *(other for other in PACKAGES if other not in allowed))
    if name.startswith("server/engine/"):
        offences += imported(name, source, "sqlalchemy", "alembic", "falcon", "requests", "server.store", "server.api")
    if not (name.startswith("server/store/") or name in HARVESTERS_TABLES):
        offences += imported(name, source, "sqlalchemy", "alembic", "psycopg", "sqlite3")
    return offences


def environment_writes(name: str, source: ast.Module) -> list[str]:
    offences = []
    for node in ast.walk(source):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = list(node.targets)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            methods = ("update", "setdefault", "pop", "popitem", "clear", "__setitem__")
            if called in ("os.putenv", "os.unsetenv", *(f"os.environ.{method}" for method in methods)):
                offences.append(f"{name}:{node.lineno}: {called}")
        for target in targets:
            if isinstance(target, ast.Subscript) and dotted(target.value) in ("os.environ", "environ"):
                offences.append(f"{name}:{target.lineno}: write to os.environ")
    return offences


def sleeps(name: str, source: ast.Module) -> list[str]:
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    offences = [f"{name}:{node.lineno}: time.sleep" for node in calls if dotted(node.func) == "time.sleep"]
    return offences + [f"{name}: imports {found}" for found in imported(name, source, "time.sleep")]


def swallowed_errors(name: str, source: ast.Module) -> list[str]:
    offences = []
    for node in ast.walk(source):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is not None and dotted(kind) in ("Exception", "BaseException") for kind in kinds)
        idle = all(
            isinstance(statement, (ast.Pass, ast.Continue))
            or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            for statement in node.body
        )
        if node.type is None or (broad and idle):
            offences.append(f"{name}:{node.lineno}")
    return offences


def too_new(name: str, text: str) -> list[str]:
    """What Python 3.9 does not parse, or does not run although it parses."""
    try:
        source = ast.parse(text, name, feature_version=(3, 9))
    except SyntaxError as error:
        return [f"{name}:{error.lineno}: {error.msg}"]
    postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in source.body)
    annotations = [part for node in ast.walk(source) for part in _annotations(node)] if postponed else []
    never_evaluated = {id(part) for annotation in annotations for part in ast.walk(annotation)}
    offences = []
    for node in ast.walk(source):
        if isinstance(node, ast.BinOp) and _is_optional(node) and id(node) not in never_evaluated:
            offences.append(f"{name}:{node.lineno}: `X | None` is evaluated here")
        if isinstance(node, ast.Call) and dotted(node.func) == "zip" and _given(node, "strict"):
            offences.append(f"{name}:{node.lineno}: zip(strict=)")
        if isinstance(node, ast.Call) and dotted(node.func).endswith("dataclass") and _given(node, "slots", "kw_only"):
            offences.append(f"{name}:{node.lineno}: slots= or kw_only= of a dataclass")
    return offences


def _given(call: ast.Call, *names: str) -> bool:
    return any(keyword.arg in names for keyword in call.keywords)


def _annotations(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.AnnAssign, ast.arg)):
        return [node.annotation] if node.annotation else []
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.returns] if node.returns else []
    return []


def _is_optional(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return isinstance(node.op, ast.BitOr) and any(
        isinstance(side, ast.Constant) and side.value is None for side in sides
    )


def structs(sources: dict[str, ast.Module]) -> dict[str, list[ast.ClassDef]]:
    """The msgspec structs of each module: whose bases are Struct, or another struct of any of the modules."""
    classes = {name: [n for n in ast.walk(source) if isinstance(n, ast.ClassDef)] for name, source in sources.items()}
    known = {"Struct"}
    while True:
        new = {c.name for found in classes.values() for c in found if _bases(c) & known} - known
        if not new:
            return {name: [c for c in found if _bases(c) & known] for name, found in classes.items()}
        known |= new


def _bases(node: ast.ClassDef) -> set[str]:
    return {dotted(base).rpartition(".")[2] for base in node.bases}


def evaluated_unions(name: str, found: list[ast.ClassDef]) -> list[str]:
    return [
        f"{name}:{field.lineno}: {struct.name}"
        for struct in found
        for field in struct.body
        if isinstance(field, ast.AnnAssign)
        for node in ast.walk(field.annotation)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
    ]


# --- the product obeys them -------------------------------------------------------------------------------------------


def offences_of(rule: object, names: list[str]) -> list[str]:
    assert callable(rule)
    return [f"{name}: {offence}" for name in names for offence in rule(name, tree(name))]


def test_programs_import_common_and_never_each_other() -> None:
    assert offences_of(forbidden_imports, below(*PACKAGES)) == []


def test_nobody_writes_to_the_environment() -> None:
    assert offences_of(environment_writes, below(*PACKAGES)) == []


def test_nothing_sleeps() -> None:
    assert offences_of(sleeps, below(*PACKAGES)) == []


def test_no_error_is_swallowed() -> None:
    assert offences_of(swallowed_errors, below(*PACKAGES)) == []


def test_common_and_pilot_are_python_3_9() -> None:
    offences = [offence for name in below(*OLDEST) for offence in too_new(name, modules()[name].read_text("utf-8"))]
    assert offences == []


def test_fields_of_structs_can_be_evaluated_on_python_3_9() -> None:
    found = structs({name: tree(name) for name in below(*OLDEST)})
    assert sum(map(len, found.values())) >= 5, "the structs were not found"
    assert [offence for name in found for offence in evaluated_unions(name, found[name])] == []


def test_modules_can_be_held_in_the_head() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def _entry_points() -> list[tuple[str, str, str]]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    groups = parser["options.entry_points"]
    lines = [(group, line) for group in groups for line in groups[group].splitlines() if line.strip()]
    return [(group, *line.replace(" ", "").split("=", 1)) for group, line in lines]  # type: ignore[misc]


@pytest.mark.parametrize(("group", "name", "target"), _entry_points())
def test_every_entry_point_names_something_that_exists(group: str, name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    path = module.replace(".", "/")
    file = next((file for file in (f"{path}.py", f"{path}/__init__.py") if file in modules()), None)
    assert file, f"{group}: {name} names the module {module}, which does not exist"
    bound: set[str] = set()
    for node in tree(file).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    assert attribute in bound, f"{group}: {name} names {attribute}, which {file} does not have"


# --- the rules themselves find what they are for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pilot/a.py", "import server.engine"),
        ("pilot/a.py", "def f():\n    from harvester import store"),
        ("server/a.py", "from pilot.agent import Agent"),
        ("common/a.py", "import pilot"),
        ("server/engine/a.py", "from falcon import Request"),
        ("server/engine/a.py", "import requests.adapters"),
        ("server/engine/a.py", "from server import store"),
        ("server/engine/a.py", "from ..store import claims"),
        ("server/engine/a.py", "from .. import api"),
        ("server/api/a.py", "from sqlalchemy import select"),
        ("server/agents/a.py", "import sqlite3"),
        ("harvester/provisioner.py", "import sqlalchemy as sa"),
    ],
)
def test_a_forbidden_import_is_found(name: str, text: str) -> None:
    assert forbidden_imports(name, ast.parse(text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pilot/a.py", "import common.http, pilot.job, pilotage_extra"),
        ("server/store/a.py", "import sqlalchemy"),
        ("harvester/store.py", "import sqlalchemy"),
        ("server/engine/a.py", "from . import match\nfrom .match import rank\nfrom common import states"),
    ],
)
def test_an_allowed_import_passes(name: str, text: str) -> None:
    assert forbidden_imports(name, ast.parse(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "os.environ['A'] = 'b'",
        "del os.environ['A']",
        "os.environ.update(x)",
        "os.putenv('A', 'b')",
        "environ['A'] += 'b'",
    ],
)
def test_a_write_to_the_environment_is_found(text: str) -> None:
    assert environment_writes("a.py", ast.parse(text))
    assert environment_writes("a.py", ast.parse("x = os.environ['A']; os.environ.get('A')")) == []


def test_a_sleep_is_found() -> None:
    for text in ("time.sleep(1)", "from time import sleep"):
        assert sleeps("a.py", ast.parse(text))
    assert sleeps("a.py", ast.parse("import time\nevent.wait(1)\ntime.monotonic()")) == []


@pytest.mark.parametrize(
    "handler",
    ["except:\n  log()", "except Exception:\n  pass", "except (OSError, BaseException):\n  ...", "except:\n  raise"],
)
def test_a_swallowed_error_is_found(handler: str) -> None:
    assert swallowed_errors("a.py", ast.parse(f"try:\n  f()\n{handler}"))
    for fine in ("except OSError:\n  pass", "except Exception:\n  log()\n  raise"):
        assert swallowed_errors("a.py", ast.parse(f"try:\n  f()\n{fine}")) == []


@pytest.mark.parametrize(
    "text",
    [
        "match x:\n  case 1:\n    pass",
        "try:\n  f()\nexcept* ValueError:\n  pass",
        "x: int | None = 1",
        "from __future__ import annotations\nAlias = int | None",
        "from __future__ import annotations\nx = cast(None | int, y)",
        "@dataclass(slots=True)\nclass A: ...",
        "zip(a, b, strict=True)",
    ],
)
def test_what_python_3_9_cannot_run_is_found(text: str) -> None:
    assert too_new("a.py", text)
    fine = "from __future__ import annotations\ndef f(x: int | None) -> str | None:\n  y: int | None = a | b"
    assert too_new("a.py", fine) == []


def test_a_union_in_a_field_of_a_struct_is_found() -> None:
    texts = {"a.py": "class A(msgspec.Struct): x: int", "b.py": "class B(A):\n  y: list[int | str]"}
    found = structs({name: ast.parse(text) for name, text in texts.items()})
    assert evaluated_unions("a.py", found["a.py"]) == []
    assert evaluated_unions("b.py", found["b.py"])
