from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdsearch

PACKAGE = Path(kdsearch.__file__).parent
LAYERS = [
    {"errors", "stats"},
    {"records", "pareto", "sittings"},
    {"spec", "pruning", "system"},
    {"storage"},
    {"data", "networks"},
    {"measure"},
    {"distil"},
    {"search", "reporting"},
    {"export"},
    {"experiments"},
    {"cli", "__main__"},
]
REPORTING_NEEDS = {"reporting", "errors", "records", "pareto", "sittings", "spec", "stats", "storage", "system"}
APART = ({"search", "reporting"}, {"pruning", "spec"}, {"pruning", "system"})  # equals that never import each other
NAMES = 20  # in kdsearch/
SHARED_NAMES = {"__init__", "run", "page"}  # every experiment has a run and a page
LINES = 500
PUBLIC = [
    "KdsearchError",
    "ParetoPruner",
    "__version__",
    "optimize",
    "report",
    "should_prune",
    "should_stop",
    "write_report",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(module: str, *, lazy: bool) -> set[str]:
    """Modules of the package that a module imports; with `lazy`, those inside functions and for types too."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(SOURCES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if not lazy and (isinstance(node, ast.FunctionDef) or is_for_types_only(node)):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else str(node.module) for name in inner}
    return {name for name in found if name in SOURCES} - {module}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def rank(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def test_the_reader_of_imports_sees_them():
    assert {"kdsearch.data", "kdsearch.data.views", "kdsearch.spec"} <= imports("kdsearch.distil.train", lazy=False)
    assert "kdsearch.search.study" in imports("kdsearch", lazy=True)
    assert "kdsearch.search.study" not in imports("kdsearch", lazy=False)


def test_every_module_has_its_layer():
    assert {room(module) for module in SOURCES} - {""} <= set.union(*LAYERS)


@pytest.mark.parametrize("module", [m for m in SOURCES if room(m)])
def test_imports_point_down_the_layers(module):
    level = rank(room(module))
    for other in imports(module, lazy=True):
        if room(other) == "":  # the package's own names, its version: for the command line alone
            assert level == rank("cli"), other
        else:
            assert rank(room(other)) <= level, other


@pytest.mark.parametrize("one", [one for pair in APART for one in sorted(pair)])
def test_rooms_of_one_layer_that_are_apart_stay_apart(one):
    others = set().union(*(pair for pair in APART if one in pair)) - {one}
    for module in SOURCES:
        if room(module) == one:
            assert not others & {room(other) for other in imports(module, lazy=True)}, module


def door(name: str) -> set[str]:
    """The modules of a room that its `__init__` lets others use."""
    words = ast.get_docstring(ast.parse(SOURCES[f"kdsearch.{name}"].read_text(encoding="utf-8"))) or ""
    return set(re.findall(r"`([\w.]+)`", words.partition("Others use ")[2]))


def used_from_outside(name: str) -> set[str]:
    found = {other for module in SOURCES if room(module) != name for other in imports(module, lazy=True)}
    found |= {str(module) for module in kdsearch._PUBLIC.values()}
    return {other.removeprefix(f"kdsearch.{name}.") for other in found if other.startswith(f"kdsearch.{name}.")}


@pytest.mark.parametrize("name", [path.name for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file()])
def test_a_room_is_used_through_its_front_door(name):
    assert used_from_outside(name) == door(name)


def test_every_file_has_a_name_of_its_own():
    names = [path.stem for path in SOURCES.values() if path.stem not in SHARED_NAMES]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_the_front_door_is_short():
    inside = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(inside) <= NAMES, sorted(inside)


@pytest.mark.parametrize("module", [m for m in SOURCES if room(m) == "reporting"])
def test_reporting_needs_the_storage_alone_though_more_lies_below_it(module):
    assert {room(other) for other in imports(module, lazy=True)} <= REPORTING_NEEDS


def test_no_import_cycle():
    graph = {module: imports(module, lazy=True) for module in SOURCES if module != "kdsearch"}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


@pytest.mark.parametrize("module", SOURCES)
def test_no_module_is_longer_than_it_may_be(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("module", ["kdsearch", "kdsearch.cli", "kdsearch.cli.progress"])
def test_importing_it_is_quick(module):
    heavy = {"torch", "torchvision", "optuna", "plotly", "pandas", "sklearn", "numpy", "pydantic"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.slow
def test_the_report_imports_no_torch():
    code = "import sys, kdsearch; kdsearch.write_report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_names_are_frozen():
    assert kdsearch.__all__ == PUBLIC
    assert dir(kdsearch) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(kdsearch, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        _ = kdsearch.optimise
