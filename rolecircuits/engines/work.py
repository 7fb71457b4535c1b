"""Named pieces of work, done here or on the workers of a Ray cluster with the same results.

    item = Item("sh_1_4_zero_out", edit_task, {...JSON data...})
    with open_engine(args) as engine:                    --engine local (default) or ray
        for item, result in engine.run(items, "interventions", "edit"):
            ...                                          in the order in which they finish

A task is a function (state, payload) at the top of a module, where a worker finds it by name.
`state` is the worker's WorkerState: it keeps the model from one item to the next. `payload` is JSON
data and holds everything that the result depends on, so an item can be done anywhere, and doing it
twice does no harm. What a task refuses (UserError, RunFailed) stops the run with that one line.

A cluster that we start here ends with the run; one that we connect to (--ray_address) goes on.
Nothing pickled is written to a file or read from one: items and results travel inside the cluster.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from rolecircuits.runs.progress import progress


@dataclass(frozen=True)
class Item:
    """One piece of work: `task` is called with (state, payload), `label` is what the user reads."""

    label: str
    task: Callable
    payload: dict

    @property
    def name(self):
        """Hash of task and payload: equal names, equal results."""
        return content_hash([f"{self.task.__module__}:{self.task.__qualname__}", self.payload])


def content_hash(value):
    """16 hex digits of the SHA-256 of JSON data in one canonical text."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class WorkerState:
    """What a worker keeps between items: one model, and one state made with it (a clean pass)."""

    def __init__(self):
        self._model = self._state = (None, None)

    def model(self, key, load):
        """The model of this key; another one's memory is freed before `load` is called."""
        if self._model[0] != key:
            self._model = self._state = (None, None)
            self._model = (key, load())
        return self._model[1]

    def state(self, key, make):
        """The state of this key, made anew where the worker has another."""
        if self._state[0] != key:
            self._state = (None, None)
            self._state = (key, make())
        return self._state[1]


class LocalEngine:
    """Does the items one after the other in this process."""

    name = "local"

    def __init__(self, state=None):
        self.state = state or WorkerState()

    def prepare(self, item):
        """The result of the item that makes a worker ready for the items to come."""
        return item.task(self.state, item.payload)

    def run(self, items, title=None, unit="item"):
        """Yield (item, result) of every item."""
        with progress(len(items), title, unit) as bar:
            for item in items:
                yield item, item.task(self.state, item.payload)
                bar.update()

    def facts(self):
        """What experiment_config.json says about the engine."""
        return {"name": self.name}


@contextlib.contextmanager
def folder_aside():
    """A temporary folder; printed lines that name it are left out, because it will be gone."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as aside:
        try:
            with contextlib.redirect_stdout(printed):
                yield aside
        finally:
            for line in printed.getvalue().splitlines():
                if aside not in line:
                    print(line)
