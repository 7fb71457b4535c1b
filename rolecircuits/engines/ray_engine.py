"""The Ray side of work_engine.py: workers that each hold one model, and the process that hands them items.

A worker is an actor on one machine of the cluster. It starts, does the preparing item if there is one (a clean pass, say),
then one item after another. When it dies, its item goes back to the front of the queue and a new worker is asked for; after
MAX_TRIES deaths with one item the run fails and names it. Ray itself restarts nothing: the driver knows what was lost.
"""

import contextlib
import io
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

from deterministic import prepare_environment
from rolecircuits.engines.work import WorkerState, progress
from rolecircuits.inputs.errors import RunFailed, UserError, printable

PROJECT = Path(__file__).resolve().parents[2]
MAX_TRIES = 4
NOTE_AFTER_S, GIVE_UP_AFTER_S = 30, 600


class WorkerBody:
    """What runs in a worker's process. Our two errors come back as data, so that the driver prints their own line."""

    def __init__(self, folder, threads):
        if os.path.isdir(
            folder
        ):  # a relative path means what it means to the driver, where the machines share the disk
            os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when a task first imports it
        prepare_environment()
        self.state = WorkerState()

    def ready(self):
        """The first answer: {"node", "pid", "packages"}."""
        from rolecircuits.runs.record import package_versions

        return {"node": socket.gethostname(), "pid": os.getpid(), "packages": package_versions()}

    def do(self, task, payload):
        """{"value": result} or {"refused": class and text}, and "said": what the task printed."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                answer = {"value": task(self.state, payload)}
        except (UserError, RunFailed) as error:
            answer = {"refused": [type(error).__name__, str(error)]}
        return answer | {"said": printed.getvalue()}


class Worker:
    """The driver's view of a worker: `facts` once it is ready, `item` while it does one, `near` of the last one.

    preparing  the item is a preparing one, perhaps of an earlier run: its answer is nobody's result
    """

    def __init__(self, actor):
        self.actor, self.facts, self.item, self.near = actor, None, None, ""
        self.preparing = self.prepared = False


class RayEngine:
    """Does the items on `n_workers` workers, whichever of them live.

    calls      {Ray reference: Worker} of what has been asked and not yet answered
    deaths     {item name: workers that died with it}, forgotten when the item succeeds
    """

    name = "ray"

    def __init__(self, args):
        self.args, self.ray, self.folder = args, None, None
        self.workers, self.calls, self.deaths = [], {}, Counter()
        self.preparation, self.prepared = None, None
        self.lost, self.failed_starts, self.last_alive, self.noted = 0, 0, time.monotonic(), False

    def start(self):
        """Start or join the cluster and ask for the workers; a worker loads its model with its first item."""
        self.ray = self._connect()
        total = self.ray.cluster_resources()
        cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
        machines = sum(node["Alive"] for node in self.ray.nodes())
        on_cpu = getattr(self.args, "device", None) in ("cpu", "mps")
        each = self.args.gpus_per_worker or int(gpus > 0 and not on_cpu)
        self.n_workers = self.args.num_workers or (gpus // each if each else max(2, machines))
        self.threads = self.args.worker_threads or max(1, cpus // max(1, self.n_workers))
        self.resources = {"num_cpus": self.threads, "num_gpus": each}
        need = f"{self.n_workers} worker{'s' * (self.n_workers != 1)} of {self.threads} CPU and {each} GPU"
        if (
            self.n_workers < 1
            or self.n_workers * self.threads > cpus
            or self.n_workers * each > gpus
        ):
            raise UserError(
                f"--engine ray: {need} do not fit the cluster, which has {cpus} CPU and {gpus} GPU; change --num_workers, "
                "--worker_threads or --gpus_per_worker"
            )
        place = "started here" if self.folder else self.args.ray_address
        print(f"ray ({place}, {machines} machine{'s' * (machines != 1)}): {need}")
        self.last_alive = time.monotonic()
        for _ in range(self.n_workers):
            self._add_worker()

    def _connect(self):
        """Ray, initialised: quiet, without usage statistics, with this project's code sent to the workers."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_DEDUP_LOGS_SKIP_REGEX", "."
        )  # Ray's own lines: `_replace` says what was lost
        logging.getLogger("ray").setLevel(logging.ERROR)
        import ray

        where = {"address": self.args.ray_address}
        if not self.args.ray_address:
            self.folder = tempfile.mkdtemp(prefix="ray_")
            where = {"address": "local", "include_dashboard": False, "_temp_dir": self.folder}
        others = [
            f"/{path.name}"
            for path in PROJECT.iterdir()
            if path.suffix not in (".py", ".json") and path.name != "rolecircuits"
        ]
        code = {"working_dir": str(PROJECT), "excludes": others}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, runtime_env=code)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(
                f"--engine ray: {printable(' '.join(str(error).split()))[:300]}"
            ) from error
        finally:
            signal.signal(
                signal.SIGTERM, handler
            )  # Ray's own ends the process without our message and exit code
        return ray

    def close(self):
        """Stop our workers, and the cluster if it was started here."""
        if self.ray is not None:
            for worker in self.workers:
                self.ray.kill(worker.actor)
            self.ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def facts(self):
        """What experiment_config.json says about the engine."""
        return {
            "name": self.name,
            "workers": self.n_workers,
            "threads": self.threads,
            "workers_lost": self.lost,
        }

    def prepare(self, item):
        """Have every worker do `item` before anything else; the first result is returned.

        The results' "identity" must be equal: all workers must have loaded the same weights and tokenizer.
        """
        self.preparation, self.prepared = item, None
        for worker in self.workers:
            worker.prepared = False
        while self.prepared is None:
            for _ in self._step(deque()):
                pass
        return self.prepared

    def run(self, items, title=None, unit="item"):
        """Yield (item, result) of every item, as they finish; a deque may be given and grow meanwhile."""
        queue = items if isinstance(items, deque) else deque(items)
        with progress(len(queue), title, unit) as bar:
            while queue or any(
                worker.item is not None and not worker.preparing for worker in self.workers
            ):
                for item, value in self._step(queue):
                    bar.update()
                    yield item, value
                    bar.total = max(
                        bar.total, bar.n + len(queue)
                    )  # the caller may have added items

    def _step(self, queue):
        """Give idle workers something to do, wait for answers (a second at most), yield the results among them."""
        for worker in self.workers:
            if worker.facts and worker.item is None:
                if self.preparation and not worker.prepared:
                    self._give(worker, self.preparation, preparing=True)
                elif queue:
                    item = next((item for item in queue if item.near == worker.near), queue[0])
                    queue.remove(item)
                    self._give(worker, item)
        self._check_waiting()
        done, _ = self.ray.wait(list(self.calls), timeout=1)
        for reference in done:
            worker = self.calls.pop(reference)
            item, worker.item = worker.item, None
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                cause = printable(" ".join(f"{type(error.cause).__name__}: {error.cause}".split()))[
                    :500
                ]
                raise RunFailed(f"{item.label if item else 'a worker'}: {cause}") from error
            except self.ray.exceptions.RayError as error:
                self._replace(worker, item, error)
                if item is not None and not worker.preparing:
                    queue.appendleft(item)
                continue
            if item is None:
                self._welcome(worker, answer)
                continue
            value = self._open(answer)
            del self.deaths[item.name]
            if item is self.preparation:
                self._check_identity(worker, value)
            elif not worker.preparing:
                yield item, value

    def _add_worker(self):
        kind = self.ray.remote(WorkerBody).options(
            max_restarts=0, scheduling_strategy="SPREAD", **self.resources
        )
        worker = Worker(kind.remote(os.getcwd(), self.threads))
        self.workers.append(worker)
        self.calls[worker.actor.ready.remote()] = worker

    def _give(self, worker, item, preparing=False):
        worker.item, worker.near, worker.preparing = item, item.near, preparing
        self.calls[worker.actor.do.remote(item.task, item.payload)] = worker

    def _welcome(self, worker, facts):
        """A worker has started; refuse one whose machine has other library versions, which would round differently."""
        from rolecircuits.runs.record import package_versions

        worker.facts, self.failed_starts = facts, 0
        for package, version in package_versions().items():
            if facts["packages"].get(package) != version:
                raise UserError(
                    f"--engine ray: {facts['node']} has {package} {facts['packages'].get(package)}, this machine has "
                    f"{version}; install the same requirements on every machine"
                )

    def _open(self, answer):
        """The value in a worker's answer; what it printed is printed, what it refused is raised as it was there."""
        from tqdm import tqdm

        if answer["said"].strip():
            tqdm.write(answer["said"].rstrip())
        if "refused" in answer:
            kind, text = answer["refused"]
            raise (UserError if kind == "UserError" else RunFailed)(text)
        return answer["value"]

    def _check_identity(self, worker, value):
        worker.prepared = True
        if self.prepared is None:
            self.prepared = value
        for key, expected in self.prepared["identity"].items():
            if value["identity"][key] != expected:
                raise RunFailed(
                    f"{worker.facts['node']}: the model there has another {key} than the first worker's; put the same files "
                    "on every machine"
                )

    def _replace(self, worker, item, error):
        """Count a death, and ask for another worker unless this has happened too often."""
        from tqdm import tqdm

        reason = printable(" ".join(str(error).split()))[:200]
        self.workers.remove(worker)
        self.ray.kill(worker.actor)  # one that only was out of reach must not go on
        self.lost += 1
        if worker.facts is None:
            self.failed_starts += 1
            if self.failed_starts >= MAX_TRIES:
                raise RunFailed(f"no worker starts: {reason}") from error
        else:
            tqdm.write(
                f"a worker on {worker.facts['node']} was lost{f' with {item.label}' if item else ''}: replaced"
            )
        if item is not None:
            self.deaths[item.name] += 1
            if self.deaths[item.name] >= MAX_TRIES:
                raise RunFailed(
                    f"{item.label}: {MAX_TRIES} workers died with it, the last: {reason}"
                ) from error
        self._add_worker()

    def _check_waiting(self):
        """Say so when no worker has a place in the cluster for a while, and give up after a longer one."""
        from tqdm import tqdm

        if any(worker.facts for worker in self.workers):
            self.last_alive, self.noted = time.monotonic(), False
            return
        waited = time.monotonic() - self.last_alive
        need = f"{self.resources['num_cpus']} CPU and {self.resources['num_gpus']} GPU"
        if waited > GIVE_UP_AFTER_S:
            raise RunFailed(
                f"no machine of the cluster had {need} free for {GIVE_UP_AFTER_S} s; nothing was published"
            )
        if waited > NOTE_AFTER_S and not self.noted:
            self.noted = True
            tqdm.write(f"waiting for a machine with {need} free")
