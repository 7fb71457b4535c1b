"""Training runs side by side on one machine: processes with a model and a share of the cores each.

Runs do not depend on each other, and one process leaves a second core idle half of the time.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from deterministic import set_determinism
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.tuning import study

OPENED = []  # the Study of a worker process


def default_jobs(device):
    """2 on a processor with two threads or more; 1 elsewhere, where runs would share one card."""
    return 2 if torch.device(device).type == "cpu" and torch.get_num_threads() > 1 else 1


def run_study(work, jobs, bar):
    """Train and measure whatever is not there yet, `jobs` training runs at a time."""
    work.measure_base()
    bar.update()
    if jobs == 1:
        for run in work.plan.runs:
            bar.write(work.train(*run))
            bar.update(len(work.plan.doses))
        for run in work.plan.runs:
            work.match(*run, work.least_drift())
            bar.update()
        return
    with workers(work, jobs) as pool:
        for said in finished(pool, _train, work.plan.runs):
            bar.write(said)
            bar.update(len(work.plan.doses))
        target = work.least_drift()
        for _ in finished(pool, _match, [(*run, target) for run in work.plan.runs]):
            bar.update()


def workers(work, jobs):
    """The pool of processes; each opens the model for itself, with its share of the threads."""
    threads = max(1, torch.get_num_threads() // jobs)
    return ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("spawn"),  # a fork would share torch's threads
        initializer=_open,
        initargs=(work.args, work.folder, threads),
    )


def finished(pool, task, calls):
    """What task(*call) returns, in the order in which the calls end.

    An error or an interrupt ends all processes at once; what they were writing is cleaned up later.
    """
    futures = [pool.submit(task, *call) for call in calls]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunFailed(
                "a training process ended without an answer; if memory ran out, --jobs 1 needs less"
            ) from error
        raise


def _open(args, folder, threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C only the parent hears, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    set_determinism(args.seed)
    work = study.open_study(args)
    work.folder = folder
    work.measure_base()  # is there: reads the reference
    OPENED.append(work)


def _end_with_parent():
    """End as soon as the parent has, however it ended: its lock is gone, and another process may
    work in the folder.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


def _train(arm, seed):
    return OPENED[0].train(arm, seed)


def _match(arm, seed, target):
    return OPENED[0].match(arm, seed, target)
