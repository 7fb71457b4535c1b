"""What every script that runs a model leaves: a log without bars, a folder known for what it is."""

import json
import os
import subprocess
import sys

import pytest

from conftest import PROJECT
from rolecircuits.inputs import folders
from rolecircuits.runs import listing
from tiny_models import save_tiny

CUT = {"type": "head", "layer": 0, "head": 1, "method": "zero_out"}
PLAN = {"schema_version": 1, "interventions": [CUT]}
STAGES = {
    "analysis": ["activation_analysis.py"],
    "documents": ["activation_analysis.py", "--documents", "d.jsonl"],
    "edits": ["interventions.py", "--config_file", "plan.json", "--controls", "1"],
    "sweep": ["interventions.py", "--sweep", "heads"],
    "answers": ["experiment.py", "--max_tokens", "2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bars")
    save_tiny("llama", folder / "model")
    (folder / "d.jsonl").write_text('{"id": "a", "text": "It rains in the hills today."}\n')
    (folder / "plan.json").write_text(json.dumps(PLAN))
    return folder


def run_stage(folder, stage, stderr):
    words = [*STAGES[stage], "--model_id", "./model"]
    words += [] if stage == "documents" else ["--prompts_per_category", "2"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM")}
    return subprocess.run(
        [sys.executable, PROJECT / words[0], *words[1:]],
        cwd=folder,
        env=env | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def redirected(folder):
    """{stage: the finished process}, its output read from pipes."""
    return {stage: run_stage(folder, stage, subprocess.PIPE) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_redirected_run_has_no_bar(redirected, stage):
    done = redirected[stage]
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        assert "\r" not in text and "%|" not in text and "it/s" not in text
    assert done.stderr == ""


def test_on_a_terminal_there_is_one(folder):
    termios = pytest.importorskip("termios")
    master, slave = os.openpty()
    try:
        termios.tcsetwinsize(slave, (24, 80))
        done = run_stage(folder, "sweep", slave)
        os.set_blocking(master, False)
        seen = os.read(master, 100_000).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 0, seen
    assert "sweep" in seen and "%|" in seen and "\r" in seen


KINDS = {
    "latest_run": folders.RUN,
    "latest_documents": folders.DOCUMENTS,
    "latest_intervention": folders.INTERVENTION,
    "latest_sweep": folders.SWEEP,
    "latest_generation": folders.GENERATION,
}


def test_every_folder_is_known_for_what_it_is_and_listed_whole(folder, redirected):
    results = folder / "results_activation_analysis"
    assert {link: folders.kind_of(results / link) for link in KINDS} == KINDS
    found = listing.find_runs(results)
    assert {link for run in found for link in run.links} == set(KINDS)
    assert not [(run.path, run.damage, run.foreign) for run in found if run.damage or run.foreign]
    for edit in (results / "latest_intervention").glob("*/manifest.json"):
        assert folders.kind_of(edit.parent) is folders.RUN


def test_no_patterns_are_saved_unless_asked_for(folder, redirected):
    assert not list((folder / "results_activation_analysis").rglob("raw_*"))


def test_bars_of_libraries_are_hidden_too():
    code = "import rolecircuits; from tqdm.auto import tqdm; list(tqdm(range(3)))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, check=True)
    assert done.stderr == b""
