"""Run a function over a few items in as many processes as there are processors: figures are drawn side by side.

    paths = fork_map(draw_one, names)          # the function and the items are inherited, only results are sent back

Processes are forked, so large arrays are shared and nothing is imported twice. Every process takes a fixed share and ends
by itself, so that a parent that is killed leaves none waiting. Where forking is unsafe or pointless (not Linux, one
processor, one item, inside another fork_map, under Ray) the items are done here, one after the other. A child must not
compute with torch: its threads do not survive a fork.
"""

import multiprocessing
import os
import signal
import sys

from cli import RunFailed, UserError


def fork_map(function, items, processes=None):
    """[function(item) for item in items], in order; an error of a child is raised here.

    processes  at most this many (default: the processors that this process may use)
    raises     RunFailed where a child process died without an answer (killed, out of memory)
    """
    items = list(items)
    processes = min(len(items), processes or _processors())
    if processes < 2:
        return [function(item) for item in items]
    context = multiprocessing.get_context("fork")
    results, children = [None] * len(items), []
    try:
        for part in range(1, processes):
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(
                target=_work, args=(function, items[part::processes], receiver, sender), daemon=True
            )
            child.start()
            sender.close()
            children.append((part, child, receiver))
        results[::processes] = [function(item) for item in items[::processes]]
        for part, _, receiver in children:
            results[part::processes] = _receive(receiver)
    finally:
        for _, child, receiver in children:
            receiver.close()
            child.terminate()
            child.join()
    return results


def _processors():
    ray = sys.modules.get("ray")  # a driver's threads would be missing from a forked child
    alone = sys.platform != "linux" or multiprocessing.current_process().daemon or (ray and ray.is_initialized())
    return 1 if alone else len(os.sched_getaffinity(0))


def _work(function, items, receiver, sender):
    """A child: its share's results, or the expected error that ended it (a defect prints its traceback here).

    Ctrl-C is the parent's to answer; it ends its children with SIGTERM, and they remove the files that they were writing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    receiver.close()
    try:
        answer = True, [function(item) for item in items]
    except (UserError, RunFailed, OSError) as error:
        answer = False, error
    sender.send(answer)


def _receive(receiver):
    try:
        fine, answer = receiver.recv()
    except EOFError as error:
        raise RunFailed("a process that draws or tests died: killed, out of memory, or a defect") from error
    if not fine:
        raise answer
    return answer
