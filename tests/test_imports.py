"""Imports point downward only; siblings on one floor do not import each other; none hides in a function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

# From the ground up. A name covers its submodules unless a longer one is listed.
FLOORS = [
    {"lmkit"},
    {"lmkit.files", "lmkit.console", "lmkit.redact"},
    {"lmkit.config.base", "lmkit.config.paths"},
    {"lmkit.config.sections", "lmkit.config.patterns", "lmkit.config.documents"},
    {"lmkit.config.arithmetic", "lmkit.config.calibration"},
    {"lmkit.config.experiment"},
    {"lmkit.config"},
    {"lmkit.config.saved", "lmkit.config.effects"},
    {"lmkit.config.checks"},
    {"lmkit.config.entry"},
    {"lmkit.parallel", "lmkit.pages", "lmkit.metrics"},
    {"lmkit.compiler", "lmkit.hosts"},
    {"lmkit.nn"},
    {"lmkit.data.cache", "lmkit.data.keyed"},
    {"lmkit.data.sources"},
    {"lmkit.data.tokens"},
    {"lmkit.data.store"},
    {"lmkit.data.order"},
    {"lmkit.data.batches"},
    {
        "lmkit.models",
        "lmkit.objectives",
        "lmkit.optim",
        "lmkit.data",
        "lmkit.checkpoint",
        "lmkit.tracker",
        "lmkit.decode",
    },
    {"lmkit.interop"},
    {"lmkit.weights"},
    {"lmkit.core"},
    {"lmkit.cost", "lmkit.harness", "lmkit.speech"},
    {
        "lmkit.__main__",
        "lmkit.evaluate",
        "lmkit.export",
        "lmkit.generate",
        "lmkit.launch",
        "lmkit.plan",
        "lmkit.prepare",
        "lmkit.serve",
        "lmkit.show",
        "lmkit.train",
        "lmkit.verify",
    },
]
MODULES = sorted((ROOT / "lmkit").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> tuple[int, str]:
    """The floor and the room of a module: the longest listed name that covers it."""
    rooms = [(len(name), floor, name) for floor, names in enumerate(FLOORS) for name in names
             if module == name or module.startswith(name + ".")]  # fmt: skip
    _, floor, name = max(rooms)
    return floor, name


def lmkit_imports(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (
                [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names] if node.module == "lmkit" else []
            )
            found += [(node.module, node.lineno)] if node.module != "lmkit" else []
    return [(name, line) for name, line in found if name == "lmkit" or name.startswith("lmkit.")]


def violations(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    floor, room = room_of(module)
    problems = []
    for target, line in lmkit_imports(tree):
        other_floor, other = room_of(target)
        if other == "lmkit" or other == room:
            continue
        if other_floor > floor:
            problems.append(f"{module}:{line} imports {target} from a floor above")
        elif other_floor == floor:
            problems.append(f"{module}:{line} imports its sibling {target}")
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            problems += [f"{module}:{line} imports {t} inside a function" for t, line in lmkit_imports(function)]
    return problems


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    assert violations(module_name(path), path.read_text()) == []


def test_one_module_of_the_models_code_knows_platforms() -> None:
    rooms = [path for name in ("nn", "models", "objectives") for path in (ROOT / "lmkit" / name).rglob("*.py")]
    asking = {path.name for path in rooms if "lmkit.parallel.devices" in path.read_text()}
    assert asking == {"forms.py"}


def test_the_check_sees_violations() -> None:
    assert violations("lmkit.nn.x", "from lmkit.models import GPT")
    assert violations("lmkit.optim.x", "from lmkit.data import store")
    assert violations("lmkit.train.x", "def f():\n    from lmkit.nn import embed")
    assert not violations("lmkit.train.x", "from lmkit.nn import embed")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_rooms_stay_small(path: Path) -> None:
    source = path.read_text()
    most = 200 if path.parent.name == "models" else 300
    assert source.count("\n") <= most, f"{path} has over {most} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_a_run_waits_for_no_import_that_it_does_not_need() -> None:
    """Seconds before every first step: what sound, images, tables and pictures need is imported where they are."""
    slow = ["scipy.signal", "scipy.ndimage", "pandas", "pyarrow", "sklearn", "matplotlib", "torch", "transformers"]
    say = f"import sys, lmkit.train.main; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
