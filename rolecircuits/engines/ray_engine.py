"""Items on a Ray cluster: workers that each hold one model, and the process that hands them items.

A worker is a Ray actor. Where it dies, Ray starts it again wherever there is room (max_restarts),
and its item goes back to the front of the queue, to whoever is free first. The queue is ours: Ray's
max_task_retries ties an item to its worker, and after a machine is lost there may never be room for
that worker again; ray.util.ActorPool hands items to a worker that is still starting, where they
fail, and does not say which item failed.
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

from tqdm import tqdm

from deterministic import prepare_environment
from rolecircuits.engines.work import WorkerState
from rolecircuits.inputs.errors import RunFailed, UserError, one_line
from rolecircuits.runs.progress import progress
from rolecircuits.runs.record import package_versions

PROJECT = Path(__file__).resolve().parents[2]
MAX_TRIES = 4
MAX_RESTARTS = 20  # of one worker: enough for a long sweep on machines that come and go
NOTE_AFTER_S, GIVE_UP_AFTER_S = 30, 600


class WorkerBody:
    """What runs in a worker's process."""

    def __init__(self, folder, threads):
        if os.path.isdir(folder):  # where the machines share the disk, relative paths mean the same
            os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when a task first imports it
        prepare_environment()
        self.state = WorkerState()

    def start(self):
        """The first answer: {"node", "pid", "packages"}."""
        return {"node": socket.gethostname(), "pid": os.getpid(), "packages": package_versions()}

    def do(self, task, payload):
        """{"value": result} or {"refused": class and text}, and "said": what the task printed."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                answer = {"value": task(self.state, payload)}
        except (UserError, RunFailed) as error:  # as data: the driver prints their own line
            answer = {"refused": [type(error).__name__, str(error)]}
        return answer | {"said": printed.getvalue()}


class RayEngine:
    """Does the items on `n_workers` workers, whichever of them live.

    facts_of  {worker: what `start` answered}, of the workers that live
    idle      workers that have nothing to do
    calls     {Ray reference: (worker, item)} of what is not yet answered; item None: it starts
    deaths    {item name: workers that died with it}, forgotten when the item succeeds
    """

    name = "ray"

    def __init__(self, args):
        self.args, self.ray, self.folder = args, None, None
        self.workers, self.facts_of, self.idle, self.calls = [], {}, [], {}
        self.preparation = self.prepared = None
        self.deaths, self.lost = Counter(), 0
        self.last_alive, self.noted = time.monotonic(), False

    def start(self):
        """Start or join the cluster, and start workers; a model is loaded with the first item."""
        self.ray = self._connect()
        total = self.ray.cluster_resources()
        cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
        machines = sum(node["Alive"] for node in self.ray.nodes())
        on_cpu = getattr(self.args, "device", None) in ("cpu", "mps")
        n_gpus = self.args.gpus_per_worker or int(gpus > 0 and not on_cpu)
        self.n_workers = self.args.num_workers or (gpus // n_gpus if n_gpus else max(2, machines))
        self.threads = self.args.worker_threads or max(1, cpus // max(1, self.n_workers))
        self.resources = {"num_cpus": self.threads, "num_gpus": n_gpus}
        plural = "s" * (self.n_workers != 1)
        need = f"{self.n_workers} worker{plural} of {self.threads} CPU and {n_gpus} GPU"
        fits = self.n_workers * self.threads <= cpus and self.n_workers * n_gpus <= gpus
        if self.n_workers < 1 or not fits:
            raise UserError(
                f"--engine ray: {need} do not fit the cluster, which has {cpus} CPU and {gpus} GPU;"
                " change --num_workers, --worker_threads or --gpus_per_worker"
            )
        place = "started here" if self.folder else self.args.ray_address
        print(f"ray ({place}, {machines} machine{'s' * (machines != 1)}): {need}")
        self.workers = self._make_workers()
        self._start_workers()

    def _connect(self):
        """Ray, initialised: quiet, no usage statistics, this project's code sent to the workers."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # `_lose` says what was lost
        logging.getLogger("ray").setLevel(logging.ERROR)
        import ray  # takes a second, and importing this module is enough to check a task

        where = {"address": self.args.ray_address}
        if not self.args.ray_address:
            self.folder = tempfile.mkdtemp(prefix="ray_")
            where = {"address": "local", "include_dashboard": False, "_temp_dir": self.folder}
        code = {"working_dir": str(PROJECT), "excludes": files_left_out(PROJECT)}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, runtime_env=code)
        except Exception as error:
            expected = (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError)
            # Ray raises a bare Exception where a node does not start in time
            if type(error) is not Exception and not isinstance(error, expected):
                raise
            raise UserError(f"--engine ray: {one_line(error)}") from error
        finally:  # Ray's own handler ends the process without our message and exit code
            signal.signal(signal.SIGTERM, handler)
        return ray

    def _make_workers(self):
        kind = self.ray.remote(WorkerBody).options(
            max_restarts=MAX_RESTARTS, scheduling_strategy="SPREAD", **self.resources
        )
        return [kind.remote(os.getcwd(), self.threads) for _ in range(self.n_workers)]

    def close(self):
        """Stop our workers, and the cluster if it was started here."""
        if self.ray is not None:
            for worker in self.workers:
                self.ray.kill(worker)
            self.ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def facts(self):
        """What experiment_config.json says about the engine."""
        facts = {"name": self.name, "workers": self.n_workers, "threads": self.threads}
        return facts | {"workers_lost": self.lost}

    def prepare(self, item):
        """Have every worker do `item` before anything else; the first result is returned.

        The results' "identity" must be equal: all workers must have the same weights and tokenizer.
        """
        self.preparation, self.prepared = item, None
        self._start_workers()
        while self.prepared is None:
            for _ in self._answers(deque()):
                pass
        return self.prepared

    def run(self, items, title=None, unit="item"):
        """Yield (item, result) of every item, as they finish."""
        queue, missing = deque(items), len(items)
        with progress(missing, title, unit) as bar:
            try:
                while missing:
                    while queue and self.idle:
                        self._ask(self.idle.pop(), queue.popleft())
                    for item, value in self._answers(queue):
                        missing -= 1
                        bar.update()
                        yield item, value
            finally:
                if missing:  # what the workers still do is nobody's result
                    self._start_workers()

    def _start_workers(self):
        """Ask every worker to start; one that is at work answers when it is done."""
        self.idle, self.calls, self.last_alive = [], {}, time.monotonic()
        for worker in self.workers:
            self._start_worker(worker)

    def _start_worker(self, worker):
        """Ray repeats this call until the worker has come to life: that may take a machine."""
        self.calls[worker.start.options(max_task_retries=-1).remote()] = (worker, None)

    def _ask(self, worker, item):
        self.calls[worker.do.remote(item.task, item.payload)] = (worker, item)

    def _answers(self, queue):
        """Wait a second at most and yield (item, result); a lost item goes to the queue's front."""
        self._check_waiting()
        done, _ = self.ray.wait(list(self.calls), timeout=1)
        for reference in done:
            worker, item = self.calls.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                cause = one_line(f"{type(error.cause).__name__}: {error.cause}", 500)
                raise RunFailed(f"{item.label if item else 'a worker'}: {cause}") from error
            except self.ray.exceptions.RayError as error:
                self._lose(worker, item, one_line(error, 200))
                if item is not None and item is not self.preparation:
                    queue.appendleft(item)
                continue
            if item is None:
                self._welcome(worker, answer)
                continue
            self.idle.append(worker)
            value = open_answer(answer)
            del self.deaths[item.name]
            if item is self.preparation:
                self._check_identity(worker, value)
            else:
                yield item, value

    def _welcome(self, worker, facts):
        """Take in a worker that lives; another library version there would round differently."""
        before = self.facts_of.get(worker, facts)
        if (before["node"], before["pid"]) != (facts["node"], facts["pid"]):
            self.lost += 1  # it died while it had no item, and Ray started it again
        self.facts_of[worker] = facts
        for package, version in package_versions().items():
            there = facts["packages"].get(package)
            if there != version:
                raise UserError(
                    f"--engine ray: {facts['node']} has {package} {there}, this machine has "
                    f"{version}; install the same requirements on every machine"
                )
        if self.preparation is None:
            self.idle.append(worker)
        else:
            self._ask(worker, self.preparation)

    def _check_identity(self, worker, value):
        if self.prepared is None:
            self.prepared = value
        for key, expected in self.prepared["identity"].items():
            if value["identity"][key] != expected:
                raise RunFailed(
                    f"{self.facts_of[worker]['node']}: the model there has another {key} than the "
                    "first worker's; put the same files on every machine"
                )

    def _lose(self, worker, item, reason):
        """Count a death; Ray starts the worker again, unless its restarts are used up."""
        self.lost += 1
        if item is None:
            self.workers.remove(worker)
            if not self.workers:
                raise RunFailed(f"no worker starts: {reason}")
            tqdm.write(f"a worker does not start and is given up: {reason}")
            return
        node = self.facts_of.pop(worker)["node"]
        tqdm.write(f"a worker on {node} was lost with {item.label}: started again")
        self.deaths[item.name] += 1
        if self.deaths[item.name] >= MAX_TRIES:
            raise RunFailed(f"{item.label}: {MAX_TRIES} workers died with it, the last: {reason}")
        self._start_worker(worker)

    def _check_waiting(self):
        """Say so when no worker has found a place in the cluster for a while; later give up."""
        if self.facts_of:
            self.last_alive, self.noted = time.monotonic(), False
            return
        waited = time.monotonic() - self.last_alive
        need = f"{self.resources['num_cpus']} CPU and {self.resources['num_gpus']} GPU"
        if waited > GIVE_UP_AFTER_S:
            raise RunFailed(
                f"no machine of the cluster had {need} free for {GIVE_UP_AFTER_S} s; "
                "nothing was published"
            )
        if waited > NOTE_AFTER_S and not self.noted:
            self.noted = True
            tqdm.write(f"waiting for a machine with {need} free")


def files_left_out(project):
    """What of the project's folder the workers do not get: all but its scripts and its package."""
    return [
        f"/{path.name}"
        for path in project.iterdir()
        if path.suffix not in (".py", ".json") and path.name != "rolecircuits"
    ]


def open_answer(answer):
    """The value in a worker's answer; what it printed is printed, what it refused is raised."""
    if answer["said"].strip():
        tqdm.write(answer["said"].rstrip())
    if "refused" in answer:
        kind, text = answer["refused"]
        raise (UserError if kind == "UserError" else RunFailed)(text)
    return answer["value"]
