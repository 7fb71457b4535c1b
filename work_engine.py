"""Run named pieces of work here, or on the workers of a Ray cluster, with the same results.

    item = Item("sh_1_4_zero_out", "interventions:edit_task", {...plain data...})
    with open_engine(args) as engine:                    --engine local (default) or ray
        for item, result in engine.run(items, "interventions", "edit"):
            ...                                          in the order in which they finish; written by this process only

A task is a function "module:name" of (held, payload): `held` keeps the worker's model from one item to the next, `payload`
is JSON data and holds everything that the result depends on. An item is named by the hash of both, so doing it twice does
no harm: when a worker or a machine dies, its item goes to another worker and a new worker takes the dead one's place.
What a task refuses (UserError, RunFailed) stops the run with that one line.

A cluster that we start here ends with the run; one that we connect to (--ray_address) is left running. Items and results
travel through Ray inside the user's cluster; nothing pickled is written to a file or read from one.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
import socket
from collections import deque
from dataclasses import dataclass

from rolecircuits.inputs.arguments import positive_int
from rolecircuits.inputs.errors import UserError, printable

INSTALL = "pip install -r requirements-distributed.txt -c constraints.txt"
RAY_FLAGS = ("ray_address", "num_workers", "worker_threads", "gpus_per_worker")
NOT_WORK = (
    "engine",
    *RAY_FLAGS,
    "verbose",
    "output_dir",
    "config_file",
    "prompts",
    "prompts_per_category",
    "documents",
)
MODEL_ARGUMENTS = ("model_id", "revision", "dtype", "device", "device_map", "trust_remote_code")


@dataclass(frozen=True)
class Item:
    """One piece of work: `task` is "module:function", `payload` JSON data, `label` what the user reads.

    Of several free workers the one that did the last item with the same `near` gets it: it holds that model.
    """

    label: str
    task: str
    payload: dict
    near: str = ""

    @property
    def name(self):
        """Hash of task and payload: equal names, equal results."""
        return content_hash([self.task, self.payload])


def content_hash(value):
    """16 hex digits of the SHA-256 of JSON data in one canonical text."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Held:
    """What a worker keeps from item to item: one model, and one state that was made with it (a clean pass, donors)."""

    def __init__(self):
        self._model = self._state = (None, None)

    def model(self, key, load):
        """The model of this key; another one's memory is free before `load` is called."""
        if self._model[0] != key:
            self._model = self._state = (None, None)
            self._model = (key, load())
        return self._model[1]

    def state(self, key, make):
        """The state of this key, made anew where the worker holds another."""
        if self._state[0] != key:
            self._state = (None, None)
            self._state = (key, make())
        return self._state[1]


def call_task(task, payload, held):
    """Import the task's module and call its function."""
    module, _, function = task.partition(":")
    return getattr(importlib.import_module(module), function)(held, payload)


def add_engine_arguments(parser):
    """The flags that say where the work is done."""
    engine = parser.add_argument_group("where the work is done")
    engine.add_argument("--engine", choices=["local", "ray"], default="local", help="this process (default), or Ray")
    engine.add_argument("--ray_address", help="HOST:PORT of a running Ray cluster, or auto (default: start one here)")
    engine.add_argument(
        "--num_workers",
        type=positive_int,
        help="Ray workers, each holds one model (default: one a GPU; without GPUs one a machine, at least 2)",
    )
    engine.add_argument("--worker_threads", type=positive_int, help="CPU threads a worker (default: cores / workers)")
    engine.add_argument(
        "--gpus_per_worker", type=positive_int, help="GPUs a worker, more than 1 for --device_map auto (default 1)"
    )


def check_engine_arguments(args):
    """Refuse engine flags that contradict each other or need what is not installed, before anything is loaded."""
    if args.engine == "local":
        given = next((flag for flag in RAY_FLAGS if getattr(args, flag) is not None), None)
        if given:
            raise UserError(f"--{given} needs --engine ray")
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--engine ray: Ray is not installed: {INSTALL}")
    device = getattr(args, "device", None) or ""
    if device.startswith("cuda:"):
        raise UserError(f"--device {device} with --engine ray: every worker gets GPUs of its own; use --device cuda")
    if args.gpus_per_worker and device in ("cpu", "mps"):
        raise UserError(f"--gpus_per_worker {args.gpus_per_worker} with --device {device}: give one of them")
    if args.ray_address:
        check_address(args.ray_address)


def check_address(address):
    """Refuse an address that has the wrong form or where nothing answers."""
    if address == "auto":
        return
    match = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})", address)
    if not match:
        raise UserError(f"--ray_address {printable(address)}: must be HOST:PORT of the head's GCS, or auto")
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray_address {address}: nothing answers there ({error})") from error


def work_arguments(args):
    """The flags that a result may depend on, as JSON data: not where it is computed and written, or read from."""
    return {name: value for name, value in vars(args).items() if name not in NOT_WORK}


def model_key(args):
    """What identifies the model that these flags load."""
    return tuple(getattr(args, name) for name in MODEL_ARGUMENTS)


@contextlib.contextmanager
def open_engine(args, loaded=None):
    """The engine that the flags name; `loaded` is the model of these flags, where this process has it already."""
    if args.engine == "local":
        yield LocalEngine(loaded, args)
        return
    from ray_engine import RayEngine

    engine = RayEngine(args)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def progress(total, title, unit):
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, disable=title is None, leave=False)


class LocalEngine:
    """Does the items one after the other in this process."""

    name = "local"

    def __init__(self, loaded=None, args=None, held=None):
        self.held = held or Held()
        if loaded is not None:
            self.held.model(model_key(args), lambda: loaded)

    def prepare(self, item):
        """The result of the item that makes a worker ready for the items to come."""
        return call_task(item.task, item.payload, self.held)

    def run(self, items, title=None, unit="item"):
        """Yield (item, result) of every item; a deque may be given and grow meanwhile."""
        queue = items if isinstance(items, deque) else deque(items)
        with progress(len(queue), title, unit) as bar:
            while queue:
                item = queue.popleft()
                yield item, call_task(item.task, item.payload, self.held)
                bar.update()

    def facts(self):
        """What experiment_config.json says about the engine."""
        return {"name": self.name}
