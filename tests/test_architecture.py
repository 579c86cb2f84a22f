"""The layout is kept by a test: who may import whom, and who may touch private MindSpore."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mindspore_hessian"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports only from rows above its own, and from its own folder. A new module gets a place
# here first.
LEVELS = [
    {"arguments"},
    {"_interrupt", "_checkpoint", "_environment", "_progress"},
    {"estimators"},
    {"linops"},
    {"_compat"},
    {"_errors", "typing"},
    {"device"},
    {"rules"},
    {"core"},
    {"transforms"},
    {"operators"},
    {"optim"},
    {"bayes", "influence", "testing", "tools"},
    {"plot"},
    {"mindspore_hessian"},  # the package itself: what __init__ re-exports
    {"__main__"},
]
FREE_OF_MINDSPORE = ("estimators", "linops")
WITHIN_OPERATORS = {
    "risk",
    "kernel",
    "comm",
    "_make",
    "_chunked",
    "_partial",
    "_set_up",
}  # attributes of an operator
OUTSIDE_OF_OPERATORS = ("bayes", "influence", "plot", "testing", "tools", *FREE_OF_MINDSPORE)
PRIVATE_MODULES = ("mindspore.common.api", "mindspore.graph")


def level(component: str) -> int:
    found = [number for number, row in enumerate(LEVELS) if component in row]
    assert found, f"{component} has no place in LEVELS of tests/test_architecture.py"
    return found[0]


def component(path: Path) -> str:
    """The row of LEVELS that a file belongs to: its name, or that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "mindspore_hessian" if parts == ("__init__",) else parts[0]


def imports(tree: ast.AST):
    """(line, dotted name, name it is bound to) of every import, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", alias.asname or alias.name


def of_mindspore(name: str) -> bool:
    return name.split(".")[0] == "mindspore"


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def upward_imports(source: str, own: str, components: set[str]) -> list[str]:
    wrong = []
    for line, name, _ in imports(ast.parse(source)):
        first, *rest = name.split(".")
        if first != "mindspore_hessian":
            continue
        other = rest[0] if rest and rest[0] in components else first
        if other != own and level(other) >= level(own):
            wrong.append(f"line {line}: {own} imports {name}")
    return wrong


def private_mindspore(source: str) -> list[str]:
    tree, wrong, bound = ast.parse(source), [], set()
    for line, name, local in imports(tree):
        if of_mindspore(name):
            bound.add(local)
            if any(map(private, name.split("."))) or f"{name}.".startswith(
                tuple(f"{m}." for m in PRIVATE_MODULES)
            ):
                wrong.append(f"line {line}: imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in bound:
                wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
    return wrong


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_up_the_list(path):
    assert upward_imports(path.read_text(), component(path), {component(p) for p in MODULES}) == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "_compat.py"], ids=name_of)
def test_only_compat_touches_private_mindspore(path):
    assert private_mindspore(path.read_text()) == []


def reached(source: str, seen: set[str]) -> set[str]:
    """All modules that a source imports, through ours too, but for what the package's own __init__
    re-exports.
    """
    for _, imported, _ in imports(ast.parse(source)):
        parts = imported.split(".")
        if parts[0] != "mindspore_hessian":
            seen.add(parts[0])
            continue
        for file in (
            PACKAGE.joinpath(*parts[1:]).with_suffix(".py"),
            PACKAGE.joinpath(*parts[1:], "__init__.py"),
            PACKAGE.joinpath(*parts[1:-1]).with_suffix(".py"),
            PACKAGE.joinpath(*parts[1:-1], "__init__.py"),
        ):
            if file.is_file() and file != PACKAGE / "__init__.py" and name_of(file) not in seen:
                seen.add(name_of(file))
                reached(file.read_text(), seen)
    return seen


@pytest.mark.parametrize(
    "path", [p for p in MODULES if component(p) in FREE_OF_MINDSPORE], ids=name_of
)
def test_estimators_and_linops_reach_no_mindspore(path):
    assert "mindspore" not in reached(path.read_text(), set())


def reaching_in(source: str) -> list[str]:
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in WITHIN_OPERATORS
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]


@pytest.mark.parametrize(
    "path", [p for p in MODULES if component(p) in OUTSIDE_OF_OPERATORS], ids=name_of
)
def test_nobody_outside_of_operators_reaches_into_one(path):
    assert reaching_in(path.read_text()) == []


def test_what_is_reached_is_seen():
    assert "mindspore" in reached("import mindspore_hessian.device", set())
    assert "mindspore" in reached("from mindspore_hessian.operators.base import Operator", set())
    assert reached("from mindspore_hessian import arguments", set()) >= {
        "numpy",
        "mindspore_hessian/arguments.py",
    }
    assert reaching_in("op.risk.data\nself.risk\none._make(1)") == [
        "line 1: op.risk",
        "line 3: one._make",
    ]


# --- rules: a file each family --------------------------------------------------------------------

FILED_BY = (
    "derivative",
    "by_formula",
    "batching",
    "composition",
    "forward",
    "by_slopes",
    "by_partials",
    "by_composition",
    "expansion",
    "by_series",
    "by_two_series",
)


def filed(path: Path) -> dict[str, list[str]]:
    """The primitives that a file names to the decorators of rules, with what each was named to."""
    out: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in FILED_BY
        ):
            for name in node.args:
                if isinstance(name, ast.Constant):
                    out.setdefault(name.value, []).append(node.func.id)
    return out


FAMILIES = {
    path.stem: rows for path in MODULES if path.parent.name == "rules" and (rows := filed(path))
}


def test_all_rules_of_a_primitive_stand_in_one_file():
    files: dict[str, list[str]] = {}
    for family, rows in FAMILIES.items():
        for primitive in rows:
            files.setdefault(primitive, []).append(family)
    assert len(files) > 200
    assert {primitive: where for primitive, where in files.items() if len(where) > 1} == {}


def test_every_family_is_imported():
    tree = ast.parse((PACKAGE / "rules" / "__init__.py").read_text())
    assert set(FAMILIES) <= {name.split(".")[-1] for _, name, _ in imports(tree)}


UPWARD = [
    "from mindspore_hessian import transforms",
    "from mindspore_hessian.transforms.products import hvp",
    "from mindspore_hessian import hvp",
    "def f():\n    import mindspore_hessian.device",
]
PRIVATE = [
    "import mindspore._c_expression",
    "from mindspore import _c_expression",
    "from mindspore.ops._vmap import vmap_base",
    "from mindspore.ops.operations._grad_ops import TanhGrad",
    "from mindspore.common.api import jit",
    "import mindspore.graph.api as api",
    "import mindspore as ms\nms.common._utils.f()",
    "from mindspore import ops\nops._primitive_cache",
]
PUBLIC = [
    "import mindspore as ms\nms.__version__",
    "from mindspore import ops\nclass A:\n    def f(self):\n        return self._x",
    "from mindspore.ops import operations as P\nP.Tanh()",
    "import mindspore_hessian._compat",
]


@pytest.mark.parametrize("source", UPWARD)
def test_an_upward_import_is_seen(source):
    assert upward_imports(source, "_errors", {"transforms", "device", "_compat", "_errors"})


@pytest.mark.parametrize(
    ("source", "count"), [*((s, 1) for s in PRIVATE), *((s, 0) for s in PUBLIC)]
)
def test_private_mindspore_is_seen(source, count):
    assert len(private_mindspore(source)) == count
