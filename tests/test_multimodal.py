"""The text side of multimodal models: measured as transformers runs it, with no installer started
and no request made."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import activation_analysis
from conftest import PROJECT
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.runs.npz import read_npz
from tiny_models import save_tiny
from tiny_multimodal import KINDS, save_multimodal

PROMPTS = {
    "self_referent": ["Who created you and the many others that came before you?", "Are you well?"],
    "neutral": ["What is photosynthesis?", "Where does rain come from, and where does it go to?"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Function of a kind: the folder of its tiny model, made once."""
    root, made = tmp_path_factory.mktemp("multimodal"), {}

    def of(kind):
        if kind not in made:
            made[kind] = save_multimodal(kind, root / kind)
        return made[kind]

    return of


def arguments(model, tmp_path, *more):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    flags = ["--model_id", model, "--prompts", str(prompts), "--output_dir", str(tmp_path / "out")]
    return [*flags, *more]


@pytest.mark.parametrize("kind", KINDS)
def test_the_patterns_of_the_text_side_are_those_of_transformers(kind, folder, tmp_path, capsys):
    argv = arguments(folder(kind), tmp_path, "--raw", "patterns", "--device", "cpu")
    assert activation_analysis.main(argv) == 0, capsys.readouterr().err
    run = tmp_path / "out" / "latest_run"
    facts = json.loads((run / "experiment_config.json").read_text())["model"]
    name = KINDS[kind][0]
    assert (facts["architecture"], facts["multimodal"]) == (name, True)
    model = getattr(transformers, name).from_pretrained(folder(kind), attn_implementation="eager")
    rows = [json.loads(line) for line in (run / "prompts.jsonl").read_text().splitlines()]
    files = [run / f"raw_blocks_{i}_attn_pattern.npz" for i in range(facts["n_layers"])]
    stored = [read_npz(file, ["patterns"])["patterns"] for file in files]
    for i, row in enumerate(rows):
        ids = torch.tensor([row["token_ids"]])
        n = ids.shape[1]
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, output_attentions=True).attentions
        assert len(expected) == len(stored) == facts["n_layers"]
        for found, pattern in zip(stored, expected, strict=True):
            assert pattern.shape[1] == facts["n_heads"]
            assert np.abs(found[i, :, :n, :n] - pattern[0].numpy()).max() <= 1e-5


def test_the_text_model_alone_is_not_called_multimodal(tmp_path):
    folder = save_tiny("llama", tmp_path / "llama")
    loaded = read_weights(open_model(ModelSpec(folder, device="cpu")))
    assert loaded.facts["multimodal"] is False


def stand_ins(folder):
    """Programs and a Python module called as the installers are, which only note that they ran."""
    log = folder / "calls"
    (folder / "bin").mkdir()
    for name in ("pip", "pip3", "uv", "uvx", "pipx", "conda"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\nexit 1\n')
        program.chmod(0o755)
    (folder / "modules" / "pip").mkdir(parents=True)
    (folder / "modules" / "pip" / "__init__.py").touch()
    note = f"import sys\nopen({str(log)!r}, 'a').write(' '.join(sys.argv) + '\\n')\nsys.exit(1)\n"
    (folder / "modules" / "pip" / "__main__.py").write_text(note)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return log, os.environ | {"PATH": path, "PYTHONPATH": str(folder / "modules")}


PLAN = {
    "schema_version": 1,
    "interventions": [{"type": "head", "layer": 1, "head": 0, "method": "zero_out"}],
}


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("activation_analysis.py", ["--raw", "none"]),
        ("activation_analysis.py", ["--raw", "full"]),
        ("interventions.py", ["--config_file", "plan.json"]),
    ],
)
def test_no_script_starts_an_installer(script, more, folder, tmp_path):
    """torchvision is not there (it is no requirement), and without it TransformerLens runs one."""
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    log, environment = stand_ins(tmp_path)
    command = [sys.executable, str(PROJECT / script), *arguments(folder("gemma3"), tmp_path, *more)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert not log.exists(), log.read_text()
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2), done.stderr
    if "none" in more:
        assert done.returncode == 0, done.stderr


def test_the_stand_ins_note_an_installer(tmp_path):
    log, environment = stand_ins(tmp_path)
    for command in (["uv", "pip", "install", "x"], [sys.executable, "-m", "pip", "install", "x"]):
        assert subprocess.run(command, env=environment, check=False).returncode == 1
    assert [line.split()[-3:] for line in log.read_text().splitlines()] == [
        ["pip", "install", "x"],
        [str(Path(tmp_path, "modules", "pip", "__main__.py")), "install", "x"],
    ]


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2_5_vl"])
def test_a_local_folder_makes_no_request(kind, folder, tmp_path, monkeypatch, capsys):
    asked = []

    def refuse(self, address):
        asked.append(address)
        raise OSError("no network in this test")

    model = save_tiny(kind, tmp_path / kind) if kind == "llama" else folder(kind)
    for name in ("huggingface_hub", "transformers.utils.hub"):
        monkeypatch.setattr(f"{name}.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    argv = arguments(model, tmp_path, "--raw", "none", "--device", "cpu")
    assert activation_analysis.main(argv) == 0, capsys.readouterr().err
    assert asked == []
