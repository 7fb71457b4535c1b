"""The rules of the house: which file may import which, how large a file may be, and that README
draws what is there.

`make lint` checks imports and style; here each of its rules is broken once, in a copy, to see that
it would fail.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT

SCRIPTS = sorted(path.stem for path in PROJECT.glob("*.py"))
MODULES = sorted(PROJECT.glob("rolecircuits/**/*.py"))
CODE = sorted(PROJECT.glob("*.py")) + MODULES
MAX_LINES = {"script": 250, "module": 450}
MAX_IMPORTS_INSIDE_FUNCTIONS = 56


def imports_inside_functions(path):
    """(line number, the line and the one above it) of every import statement inside a function."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            for inner in ast.walk(node):
                if isinstance(inner, (ast.Import, ast.ImportFrom)):
                    yield inner.lineno, "\n".join(lines[inner.lineno - 2 : inner.end_lineno])


def imported_names(path):
    """The modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_only_the_roof_imports_other_scripts():
    shared = {"prompts", "output_manager", "deterministic"}
    for name in set(SCRIPTS) - {"run_pipeline", "language_study"}:
        wrong = set(imported_names(PROJECT / f"{name}.py")) & (set(SCRIPTS) - shared)
        assert not wrong, f"{name}.py imports {', '.join(wrong)}"


def test_files_are_short():
    for path in CODE:
        n = path.read_text(encoding="utf-8").count("\n")
        assert n <= MAX_LINES["script" if path.parent == PROJECT else "module"], f"{path}: {n}"


def test_imports_inside_functions_are_few_and_say_why():
    found = {path: sorted(set(imports_inside_functions(path))) for path in CODE}
    for path, places in found.items():
        for line, text in places:
            assert "#" in text, f"{path}:{line}: an import inside a function needs its reason"
    assert sum(map(len, found.values())) <= MAX_IMPORTS_INSIDE_FUNCTIONS


def drawn_files():
    """The files that README's drawing of the house names, as paths from the root."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(?=activation_analysis\.py)(.*?)```", readme, re.DOTALL)[1]
    folder = ""
    for line in block.splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.startswith("rolecircuits/"):
            folder = name
        elif name.endswith((".py", ".json")):
            yield (folder if line.startswith(" ") else "") + name


def test_readme_draws_the_house_as_it_is():
    files = {path.relative_to(PROJECT).as_posix() for path in CODE if path.name != "__init__.py"}
    files |= {
        path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("rolecircuits/**/*.json")
    }
    drawn = list(drawn_files())
    assert len(drawn) == len(set(drawn))
    assert set(drawn) - {"targeted_interventions.json", "model_families.json"} == files


PLANTED = {
    "stats -> runs: the same floor": (
        "rolecircuits/stats/indices.py",
        "import rolecircuits.runs.npz",
    ),
    "runs -> capture: upwards": ("rolecircuits/runs/npz.py", "import rolecircuits.capture.batches"),
    "the package -> a script": ("rolecircuits/edits/plan.py", "import output_manager"),
    "torch where none belongs": ("rolecircuits/stats/moments.py", "import torch"),
    "torch by a detour": ("rolecircuits/edits/plan.py", "import rolecircuits.models.load"),
    "numpy in inputs": ("rolecircuits/inputs/files.py", "import numpy"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "copy"
    shutil.copytree(
        PROJECT / "rolecircuits",
        folder / "rolecircuits",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in (*PROJECT.glob("*.py"), PROJECT / "pyproject.toml"):
        shutil.copy(path, folder)
    return folder


def lint(folder, *command):
    return subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_rules_hold(copied):
    done = lint(copied, "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_import_is_found(copied, planted):
    path, line = PLANTED[planted]
    before = (copied / path).read_text(encoding="utf-8")
    try:
        (copied / path).write_text(f"{before}\n\n{line}\n", encoding="utf-8")
        done = lint(copied, "lint-imports", "--no-cache")
        assert done.returncode == 1 and "BROKEN" in done.stdout
    finally:
        (copied / path).write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("E501", f"NAME = '{'x' * 100}'"),
        ("PLR0913", "def function(a, b, c, d, e, f, g):\n    return a, b, c, d, e, f, g"),
        ("TID251", "from types import SimpleNamespace\n\nNAME = SimpleNamespace()"),
        ("TID251", "import fcntl\n\nNAME = fcntl.flock"),
        ("TID251", "import importlib\n\nNAME = importlib.import_module('json')"),
    ],
)
def test_a_planted_line_is_found(copied, rule, line):
    path = copied / "rolecircuits" / "planted.py"
    try:
        path.write_text(f"{line}\n", encoding="utf-8")
        done = lint(copied, "ruff", "check", "--no-cache", "--select", rule, path)
        assert done.returncode == 1 and rule in done.stdout
    finally:
        path.unlink()
