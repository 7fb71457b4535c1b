"""Nothing here starts an installer, whatever a library asks for."""

import subprocess
import sys

import pytest
from transformer_lens.model_bridge.sources.transformers import helpers

from rolecircuits.inputs.errors import UserError
from rolecircuits.models.no_installer import is_installer, no_installer


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["uv", "pip", "install", "torchvision", "-q"], True),
        (["sh", "-c", "exec uv pip install torchvision"], True),
        ([sys.executable, "-m", "ensurepip"], True),
        ([sys.executable, "-m", "pip", "install", "torchvision"], True),
        (["/usr/bin/pip3.11", "install", "x"], True),
        (["C:\\pip.exe".replace("\\", "/"), "install", "x"], True),
        (["conda", "install", "x"], True),
        (["git", "rev-parse", "HEAD"], False),
        (["pip", "list"], False),
        (["install", "-d", "folder"], False),
    ],
)
def test_what_an_installer_is(command, expected):
    assert is_installer(command) is expected


def test_transformerlens_installs_nothing(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "torchvision", None)  # an import of it fails
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: calls.append(args))
    assert helpers._ensure_torchvision() is True and len(calls) == 1, (
        "without the guard it installs"
    )
    before = helpers._ensure_torchvision
    with no_installer():
        assert helpers._ensure_torchvision() is False
    assert len(calls) == 1 and helpers._ensure_torchvision is before


@pytest.mark.parametrize("command", [["uv", "pip", "install", "shapely"], "pip install -q shapely"])
def test_another_installer_is_refused_even_where_the_refusal_is_swallowed(command, tmp_path):
    def library():
        try:
            subprocess.run(command, shell=isinstance(command, str), check=True)
        except Exception:  # as TransformerLens does
            return "went on"

    said = "asked for shapely, which is not installed.*no installer"
    with pytest.raises(UserError, match=said), no_installer():
        assert library() == "went on"
    assert subprocess.run([sys.executable, "-c", "pass"], check=True).returncode == 0


def test_other_processes_run():
    with no_installer():
        said = subprocess.run(["echo", "hello"], check=True, capture_output=True, text=True).stdout
    assert said == "hello\n"
