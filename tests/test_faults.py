"""A stage may die, be interrupted or run out of disk at any moment: what was whole stays whole, and
the next run succeeds.

The stages run in forked children of tests/fault_server.py, which kills them before their k-th
file-system call (every moment at which a folder can be half-done, the same in every run of these
tests) or after a seeded time (everything in between).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import output_manager as om
from conftest import PROJECT
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs import files, npz
from tiny_models import save_tiny

PLAN = {
    "schema_version": 1,
    "interventions": [{"type": "head", "layer": 1, "head": 1, "method": "zero_out"}],
}


class Server:
    """The parent of the children that die."""

    def __init__(self, model):
        command = [sys.executable, PROJECT / "tests" / "fault_server.py", model]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def together(self, *requests):
        self.process.stdin.write(json.dumps(requests, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Stage:
    """One command that can be run whole or with a fault; `root` is the folder in which its
    file-system calls count."""

    def __init__(self, server, cwd, script, root, *argv):
        self.server, self.root = server, Path(root)
        self.request = {
            "script": script,
            "argv": [str(word) for word in argv],
            "cwd": cwd,
            "root": root,
        }

    def run(self, **fault):
        return self.server.together(self.request | fault)[0]

    def whole(self):
        done = self.run()
        assert done["code"] == 0, done["err"]
        return done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def server(tiny):
    server = Server(tiny)
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


@pytest.fixture
def stage(server, tiny, tmp_path):
    """A function that makes the stages of this test's folder."""
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    model = ["--model_id", tiny, "--prompts_per_category"]
    known = {
        "analysis": ("activation_analysis", out, *model, "2", "--raw", "none", "--output_dir", out),
        "full": ("activation_analysis", out, *model, "2", "--raw", "full", "--output_dir", out),
        "base": (
            "activation_analysis",
            out,
            *model,
            "1",
            "--output_dir",
            out,
            "--output_type",
            "latest_base",
        ),
        "edit": (
            "interventions",
            out,
            *model,
            "1",
            "--config_file",
            plan,
            "--controls",
            "0",
            "--output_dir",
            out,
        ),
        "sweep": ("interventions", out, *model, "2", "--sweep", "heads", "--output_dir", out),
        "smaller sweep": (
            "interventions",
            out,
            *model,
            "1",
            "--sweep",
            "heads",
            "--output_dir",
            out,
        ),
    }
    return lambda name, *more: Stage(server, tmp_path, *(known.get(name) or (name, *more)))


def target(link):
    return os.readlink(link) if link.is_symlink() else None


def left_over(root):
    return list(Path(root).rglob(f"{files.TEMPORARY}*"))


def check_results(root, link):
    """The link names a whole run, so does every run_* folder; nothing temporary is read as a run,
    nor anything in it."""
    assert om.load_run(root / link).n_layers == 3
    for folder in root.glob("run_*"):
        om.load_run(folder)
    for folder in (path for path in left_over(root) if path.is_dir() and not path.is_symlink()):
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            with pytest.raises(UserError):
                om.load_run(place)


def test_kill_9_before_every_call_of_a_run(stage):
    analysis = stage("analysis")
    calls = analysis.whole()["calls"]
    before, deaths = target(analysis.root / "latest_run"), 0
    for at in range(1, calls + 1):
        done = analysis.run(at=at)
        if done["code"] == 0:  # the clock gave the run another name, so that it had a call less
            assert at > calls - 3
            continue
        assert done["code"] == -signal.SIGKILL
        deaths += 1
        check_results(analysis.root, "latest_run")
        assert target(analysis.root / "latest_run") == before
        if at % 10 == 0:
            analysis.whole()
            assert not left_over(analysis.root)
            before = target(analysis.root / "latest_run")
    assert deaths >= calls - 2 >= 28
    analysis.whole()
    assert not left_over(analysis.root)


def test_kill_9_at_random_moments_of_a_run(stage):
    analysis, moments = stage("analysis"), random.Random(6)
    seconds = sorted(analysis.whole()["seconds"] for _ in range(3))[1]
    for _ in range(16):
        runs = len(list(analysis.root.glob("run_*")))
        done = analysis.run(after=moments.uniform(0.1, 1.0) * seconds)
        assert done["code"] in (-signal.SIGKILL, 0)
        check_results(analysis.root, "latest_run")
        assert len(list(analysis.root.glob("run_*"))) - runs in (0, 1)
    analysis.whole()
    assert not left_over(analysis.root)


def test_ctrl_c_and_sigterm_at_every_second_call_leave_nothing(stage):
    analysis = stage("analysis")
    calls = analysis.whole()["calls"]
    runs = {target(analysis.root / "latest_run")}
    for at in range(1, calls + 1, 2):
        done = analysis.run(at=at, signal=(signal.SIGINT, signal.SIGTERM)[at // 2 % 2])
        assert done["code"] == 130 and done["err"].splitlines()[-1].startswith("interrupted: "), (
            at,
            done,
        )
        assert not left_over(analysis.root)
        published = {path.name for path in analysis.root.glob("run_*")}
        assert published - runs in (set(), {target(analysis.root / "latest_run")})
        runs = published
        om.load_run(analysis.root / "latest_run")


@pytest.mark.parametrize("name", ["analysis", "edit"])
def test_a_full_disk_is_one_line_and_loses_nothing(stage, name):
    analysis, tried = stage(name), stage(name)
    analysis.whole()
    link = next(path for path in analysis.root.iterdir() if path.is_symlink())
    before = target(link)
    sizes = sorted({path.stat().st_size for path in link.resolve().rglob("*") if path.is_file()})
    for limit in [0, *(size - 1 for size in (sizes if name == "analysis" else sizes[::4]))]:
        done = tried.run(max_bytes=limit)
        last = done["err"].splitlines()[-1]
        assert done["code"] == 1 and last.startswith("error: File too large"), done
        assert target(link) == before and not left_over(analysis.root)
        assert [
            path.name for path in analysis.root.iterdir() if path.is_dir() and not path.is_symlink()
        ] == [before]
    analysis.whole()


def test_a_disk_that_is_really_full(server, tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(
            "no right to mount a tmpfs here; the file-size limit above covers the same writes"
        )
    try:
        words = ["--model_id", tiny, "--prompts_per_category", "2", "--output_dir", disk, "--raw"]
        small, large = (
            Stage(server, tmp_path, "activation_analysis", disk, *words, raw)
            for raw in ("none", "full")
        )
        small.whole()
        before = target(disk / "latest_run")
        done = large.run()
        assert (
            done["code"] == 1 and "error: No space left on device" in done["err"].splitlines()[-1]
        ), done
        assert target(disk / "latest_run") == before and not left_over(disk)
        om.load_run(disk / "latest_run")
        small.whole()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_refused_and_stays_as_it_is(server, tiny, tmp_path):
    """/proc takes no files, not even from root, for whom permission bits do not count."""
    place = "/proc/self/results"
    done = Stage(
        server, tmp_path, "activation_analysis", place, "--model_id", tiny, "--output_dir", place
    ).run()
    assert done["code"] == 2 and done["err"].count("\n") == 1 and "--output_dir" in done["err"], (
        done
    )


def test_three_runs_at_once_in_one_folder_all_complete(server, stage):
    stages = [stage("analysis"), stage("base"), stage("edit")]
    for _ in range(2):
        for done in server.together(*(each.request for each in stages)):
            assert done["code"] == 0, done["err"]
    root = stages[0].root
    assert len(list(root.glob("run_*"))) == 4 and len(list(root.glob("intervention_*"))) == 2
    for link in ("latest_run", "latest_base", "latest_intervention/baseline"):
        om.load_run(root / link)
    assert not left_over(root)


def test_two_sweeps_at_once_are_both_whole(server, stage):
    sweep = stage("sweep")
    for done in server.together(sweep.request, sweep.request):
        assert done["code"] == 0, done
    assert len(list(sweep.root.glob("sweep_*"))) == 2 and not list(sweep.root.glob(".sweep*"))
    for folder in sweep.root.glob("sweep_*"):
        assert npz.read_npz(folder / "head_effects.npz", ["kl"])["kl"].shape == (3, 4, 4)


def test_kill_9_during_interventions(stage):
    edit = stage("edit")
    calls = edit.whole()["calls"]
    before = target(edit.root / "latest_intervention")
    for at in (*range(9, calls - 6, 14), calls - 3, calls - 2, calls - 1):
        assert edit.run(at=at)["code"] == -signal.SIGKILL
        check_results(edit.root, "latest_intervention/baseline")
        assert target(edit.root / "latest_intervention") == before
    edit.whole()
    assert not left_over(edit.root) and target(edit.root / "latest_intervention") != before


def sweep_arrays(root):
    return npz.read_npz(
        root / "latest_sweep" / "head_effects.npz", ["kl_by_prompt", "rfc_change", "prompt_id"]
    )


def test_a_killed_sweep_goes_on_where_it_was_and_ends_as_if_nothing_had_happened(stage):
    """Although a sweep of other prompts is begun and finished beside its layers."""
    sweep, other = stage("sweep"), stage("smaller sweep")
    calls, expected = sweep.whole()["calls"], {}
    expected["sweep"] = sweep_arrays(sweep.root)
    other.whole()
    expected["other"] = sweep_arrays(sweep.root)
    layers, said = [], "layers were done before"
    for at in (4, calls // 3, 2 * calls // 3, calls - 6, calls - 1):
        shutil.rmtree(sweep.root)
        assert sweep.run(at=at)["code"] == -signal.SIGKILL, at
        layers.append(len(list(sweep.root.glob(".sweep_heads/[!.]*"))))
        assert said not in other.whole()["out"]
        check_arrays(sweep_arrays(sweep.root), expected["other"])
        assert (said in sweep.whole()["out"]) == (layers[-1] > 0)
        check_arrays(sweep_arrays(sweep.root), expected["sweep"])
        assert not left_over(sweep.root) and not list(sweep.root.glob(".sweep*"))
    assert layers[0] == 0 and max(layers) == 3


def check_arrays(arrays, expected):
    for name, values in expected.items():
        assert np.array_equal(arrays[name], values, equal_nan=name == "rfc_change"), name


def test_a_damaged_layer_is_done_again_and_said(stage):
    sweep = stage("sweep")
    calls = sweep.whole()["calls"]
    expected = sweep_arrays(sweep.root)
    shutil.rmtree(sweep.root)
    assert sweep.run(at=2 * calls // 3)["code"] == -signal.SIGKILL
    layer, *others = sweep.root.glob(".sweep_heads/[!.]*")
    layer.write_bytes(layer.read_bytes()[:-20])
    said = sweep.whole()["out"]
    assert f"{layer.name}: damaged" in said and "done again" in said
    assert ("layers were done before" in said) == bool(others)
    check_arrays(sweep_arrays(sweep.root), expected)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


READERS = {
    "visualize_results": lambda base, run: (["--input_dir", base], ["--input_dir", run]),
    "compare_base_instruct": lambda base, run: (
        ["--base_dir", base, "--instruct_dir", base],
        ["--base_dir", base, "--instruct_dir", run],
    ),
    "analyze_results": lambda base, run: (["--input_dir", base], ["--input_dir", run]),
}


@pytest.mark.parametrize("script", READERS)
def test_a_killed_reader_leaves_every_file_old_or_new_never_half(stage, tmp_path, script):
    stage("analysis").whole()
    stage("base").whole()
    results, shown = tmp_path / "out", tmp_path / "shown"
    first, second = READERS[script](results / "latest_base", results / "latest_run")
    old_stage, new_stage = (
        stage(script, shown, *words, "--output_dir", shown) for words in (first, second)
    )
    new_stage.whole()
    new = contents(shown)
    calls = old_stage.whole()["calls"]
    old = contents(shown)
    assert old.keys() == new.keys() and old != new

    def check_whole(what):
        """What a killed run left in temporary folders may lie there until a run is whole."""
        for path, content in contents(shown).items():
            temporary = any(part.startswith(files.TEMPORARY) for part in path.parts)
            assert temporary or content in (old[path], new[path]), (what, path)

    for at in (calls // 3, calls // 2, calls - 2):  # code 1: a process that it had forked died
        assert new_stage.run(at=at)["code"] in (-signal.SIGKILL, 1)
        check_whole(at)
    done = new_stage.run(max_bytes=max(map(len, new.values())) - 1)
    assert done["code"] == 1 and done["err"].splitlines()[-1].startswith("error: File too large")
    check_whole("full disk")
    new_stage.whole()
    assert contents(shown) == new


def test_the_conversion_of_the_bundled_model_is_whole_or_absent(stage, tmp_path):
    cache = tmp_path / "cache"
    convert = stage("conversion", cache, cache)
    calls = convert.whole()["calls"]
    (folder,) = (cache / "role-conditioning").glob("smollm2-*")
    whole = contents(folder)
    for at in range(1, calls + 1, max(1, calls // 6)):
        shutil.rmtree(folder, ignore_errors=True)
        assert convert.run(at=at)["code"] == -signal.SIGKILL
        assert not folder.exists() or contents(folder) == whole
    shutil.rmtree(folder, ignore_errors=True)
    done = convert.run(max_bytes=100_000)
    assert (
        done["code"] == 1
        and "the converted model cannot be written" in done["err"].splitlines()[-1]
    )
    assert not folder.exists() and not left_over(cache)
    for done in convert.server.together(convert.request, convert.request):
        assert done["code"] == 0
    assert contents(folder) == whole and not left_over(cache)
