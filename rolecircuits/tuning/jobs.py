"""Training runs side by side on one machine: processes with a model and a share of the cores each.

Runs do not depend on each other, and one process leaves a second core idle half of the time.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from rolecircuits.tuning import study

OPENED = []  # the Study of a worker process


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
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _open(args, folder, threads):
    torch.set_num_threads(threads)
    work = study.open_study(args)
    work.folder = folder
    work.measure_base()  # is there: reads the reference
    OPENED.append(work)


def _train(arm, seed):
    return OPENED[0].train(arm, seed)


def _match(arm, seed, target):
    return OPENED[0].match(arm, seed, target)
