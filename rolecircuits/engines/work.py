"""Run named pieces of work here, or on the workers of a Ray cluster, with the same results.

    item = Item("sh_1_4_zero_out", edit_task, {...plain data...})
    with open_engine(args) as engine:                    --engine local (default) or ray
        for item, result in engine.run(items, "interventions", "edit"):
            ...                                          in the order in which they finish; written by this process only

A task is a function of (state, payload) at the top of a module: `state` keeps the worker's model from one item to the
next, `payload` is JSON data and holds everything that the result depends on. An item is named by the hash of both, so
doing it twice does no harm: when a worker or a machine dies, its item goes to another worker and a new worker takes the
dead one's place.
What a task refuses (UserError, RunFailed) stops the run with that one line.

A cluster that we start here ends with the run; one that we connect to (--ray_address) is left running. Items and results
travel through Ray inside the user's cluster; nothing pickled is written to a file or read from one.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rolecircuits.inputs.specs import ModelSpec

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


@dataclass(frozen=True)
class Item:
    """One piece of work: `task` is a function (state, payload), `payload` JSON data, `label` what the user reads.

    Of several free workers the one that did the last item with the same `near` gets it: it holds that model.
    """

    label: str
    task: Callable
    payload: dict
    near: str = ""

    @property
    def name(self):
        """Hash of task and payload: equal names, equal results."""
        return content_hash([f"{self.task.__module__}:{self.task.__qualname__}", self.payload])


def content_hash(value):
    """16 hex digits of the SHA-256 of JSON data in one canonical text."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class WorkerState:
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


def work_arguments(args):
    """The flags that a result may depend on, as JSON data: not where it is computed and written, or read from."""
    return {name: value for name, value in vars(args).items() if name not in NOT_WORK}


def model_key(args):
    """What identifies the model that these flags load."""
    return ModelSpec.of(args)


def progress(total, title, unit):
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, disable=title is None, leave=False)


class LocalEngine:
    """Does the items one after the other in this process."""

    name = "local"

    def __init__(self, loaded=None, args=None, state=None):
        self.state = state or WorkerState()
        if loaded is not None:
            self.state.model(model_key(args), lambda: loaded)

    def prepare(self, item):
        """The result of the item that makes a worker ready for the items to come."""
        return item.task(self.state, item.payload)

    def run(self, items, title=None, unit="item"):
        """Yield (item, result) of every item; a deque may be given and grow meanwhile."""
        queue = items if isinstance(items, deque) else deque(items)
        with progress(len(queue), title, unit) as bar:
            while queue:
                item = queue.popleft()
                yield item, item.task(self.state, item.payload)
                bar.update()

    def facts(self):
        """What experiment_config.json says about the engine."""
        return {"name": self.name}
