"""A study whose folder lost something, or whose process was killed: what is there is not believed
beyond what it is, and nothing goes on working without its parent."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

import tuning_study
from tiny_models import save_tiny

pytest.importorskip("peft")
pytest.importorskip("sklearn")
pytest.importorskip("concept_erasure")
from concurrent.futures.process import BrokenProcessPool

from rolecircuits.inputs.errors import RunFailed
from rolecircuits.tuning import jobs, study

ONE = ["--arms", "role", "--seeds", "1", "--doses", "2,4", "--lr", "0.01", "--sets", "crossed"]
KILLED = """
import multiprocessing, threading, time
from rolecircuits.tuning import jobs

def work():
    threading.Thread(target=jobs._end_with_parent, daemon=True).start()
    time.sleep(300)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    print(child.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("state_is_left", [False, True])
def test_a_checkpoint_that_is_gone_is_made_again_as_it_was(tmp_path, monkeypatch, state_is_left):
    """dose_0002 again, neither from the weights of step 4 nor with the losses of other steps."""
    model = save_tiny("llama", tmp_path / "model", hidden_size=64)
    flags = ["--model_id", model, "--output_dir", str(tmp_path / "out"), *ONE, "--jobs", "1"]
    if state_is_left:
        monkeypatch.setattr(study.Study, "remove_states", lambda work: None)
    assert tuning_study.main(flags) == 0
    folder = (tmp_path / "out" / "latest_study").resolve()
    whole = (folder / "checkpoints.npz").read_bytes()
    for name in ("dose_0002", "matched"):
        shutil.rmtree(folder / "role_0" / name)
    if not state_is_left:
        (folder / "role_0" / "losses.json").unlink()
    assert tuning_study.main(flags) == 0
    assert (folder / "checkpoints.npz").read_bytes() == whole


def test_a_training_process_ends_with_its_parent_however_that_ends(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=env)
    child = psutil.Process(int(parent.stdout.readline()))
    while len(child.threads()) < 2 or child.num_threads() < 2:
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=60)
    for process in psutil.wait_procs([child], timeout=0)[1]:
        process.kill()
    assert gone == [child]


def test_a_training_process_that_vanishes_is_one_clear_failure():
    class Pool:
        def submit(self, task, *call):
            from concurrent.futures import Future

            future = Future()
            future.set_exception(BrokenProcessPool("a child"))
            return future

        def shutdown(self, **how):
            assert how == {"wait": False, "cancel_futures": True}

    with pytest.raises(RunFailed, match="--jobs 1"):
        list(jobs.finished(Pool(), print, [("role", 0)]))


def test_one_run_at_a_time_on_a_card(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert jobs.default_jobs(torch.device("cuda")) == 1
    assert jobs.default_jobs(torch.device("cpu")) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert jobs.default_jobs("cpu") == 1
