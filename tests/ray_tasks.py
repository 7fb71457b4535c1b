"""Tasks for the tests of the engines: quick, without a model. Ray workers find this module through PYTHONPATH."""

import os
import time
from argparse import Namespace
from pathlib import Path

from rolecircuits.engines.work import Item
from rolecircuits.inputs.errors import RunFailed, UserError


def flags(**changes):
    """The engine's flags, --engine ray and nothing else unless changed."""
    given = {"engine": "ray", "ray_address": None, "num_workers": None, "worker_threads": None}
    return Namespace(**given | {"gpus_per_worker": None, "device": None} | changes)


def waits(log, n, seconds=0.4):
    """n items that take `seconds` each and leave a line in the log."""
    return [
        Item(f"item {i}", wait, {"n": i, "seconds": seconds, "log": str(log)}) for i in range(n)
    ]


def wait(state, payload):
    """Say who did it; every doing leaves a line in the log."""
    time.sleep(payload["seconds"])
    with open(payload["log"], "a") as log:
        log.write(f"{payload['n']}\n")
    return {"n": payload["n"], "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def prepare(state, payload):
    """A state that later items need."""
    state.state("prepared", lambda: payload["value"])
    return {"identity": {"weights": payload["value"]}}


def prepared(state, payload):
    """The state as this worker holds it; it must not have to be made."""
    time.sleep(0.2)
    return {"state": state.state("prepared", lambda: "made late"), "pid": os.getpid()}


def die(state, payload):
    """Kill the worker every time."""
    os._exit(1)


def die_once(state, payload):
    """Kill the worker the first time."""
    mark = Path(payload["mark"])
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return "alive"


def refuse(state, payload):
    """Fail in the way that payload says."""
    print("about to fail")
    raise {"UserError": UserError, "RunFailed": RunFailed, "ValueError": ValueError}[
        payload["kind"]
    ](payload["text"])


def prepare_slowly(state, payload):
    """A preparation that one worker still does when the run that asked for it is over."""
    time.sleep(payload["seconds"])
    return {"identity": {"weights": "slow"}}
