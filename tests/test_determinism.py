"""What is promised about repeating numbers is kept and recorded, and nothing else is claimed."""

import os
import subprocess
import sys

import pytest
import torch

import deterministic
from conftest import PROJECT
from deterministic import ROUNDING_TOLERANCE, prepare_environment, set_determinism
from prompts import select_prompts
from rolecircuits.capture.attention import capture_patterns
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.runs.repeat import CLOSE, IDENTICAL, compare_arrays
from tiny_models import load_checked, save_tiny


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A tiny model's arrays of all 120 prompts, in batches of 1, 7 and 120, and of 7 again."""
    loaded = load_checked(save_tiny("llama", tmp_path_factory.mktemp("tiny")))
    set_determinism(123)
    tokenized = tokenize_prompts(select_prompts(), loaded.tokenizer)
    assert len(tokenized) == 120
    return {
        name: capture_patterns(loaded, tokenized, size).arrays
        for name, size in {"1": 1, "7": 7, "120": 120, "7 again": 7}.items()
    }


@pytest.mark.parametrize("size", ["7", "120"])
def test_batch_sizes_agree_within_the_tolerance(captured, size):
    found = compare_arrays(captured["1"], captured[size], ROUNDING_TOLERANCE["float32"])
    assert found["verdict"] in (CLOSE, IDENTICAL), found["largest"]
    assert ROUNDING_TOLERANCE["float32"] == 1e-5


def test_the_same_batch_size_is_bit_identical(captured):
    assert compare_arrays(captured["7"], captured["7 again"], 0.0)["verdict"] == IDENTICAL


def test_the_record_is_what_torch_says(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        torch.backends.cudnn.benchmark
    ) = True
    record = set_determinism(5)
    first = torch.rand(3)
    assert record["seed"] == torch.initial_seed() == 5 and torch.equal(
        first, torch.manual_seed(5) and torch.rand(3)
    )
    assert record["tf32"] is False and record["cudnn_benchmark"] is False
    assert torch.are_deterministic_algorithms_enabled() and record["torch_deterministic_algorithms"]
    assert (
        record["cublas_workspace_config"] == ":16:8"
        and record["torch_threads"] == torch.get_num_threads()
    )
    assert record["gpu"] is None or torch.cuda.is_initialized()


IMPORTED_FIRST = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch", "matplotlib"):
            assert "rolecircuits" in sys.modules, f"{name} is imported before rolecircuits"
            assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE", name
            assert os.environ["OPENBLAS_NUM_THREADS"] == "7", name  # the user's own value
            assert os.environ["MPLBACKEND"] == "Agg", name
        return None
sys.meta_path.insert(0, Watch())
import importlib
importlib.import_module(sys.argv[1])
import numpy
"""
MODULES = sorted({path.stem for path in PROJECT.glob("*.py")} - {"deterministic"})


@pytest.mark.parametrize("module", [*MODULES, "conftest"])
def test_switches_are_set_before_what_reads_them_is_imported(module):
    """deterministic.py imports nothing heavy; every other way leads past rolecircuits."""
    names = ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "MPLBACKEND")
    others = {name: value for name, value in os.environ.items() if name not in names}
    given = {"OPENBLAS_NUM_THREADS": "7", "MPLBACKEND": "TkAgg"}
    place = PROJECT / "tests" if module == "conftest" else PROJECT
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_FIRST, module],
        cwd=place,
        env=others | given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("running", [False, True])
def test_cublas_is_only_claimed_where_it_was_set_in_time(running, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: running)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    prepare_environment()
    record = deterministic.set_determinism(1)
    assert record["cublas_workspace_config"] == (None if running else ":4096:8")
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == record["cublas_workspace_config"]
    assert record["gpu"] == ("a GPU" if running else None)
