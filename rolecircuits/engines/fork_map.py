"""Run a function over a few items in as many processes as there are processors.

    paths = fork_map(draw_one, names)     # function and items are inherited, results are sent back

Figures are drawn side by side with it. Processes are forked, so large arrays are shared and nothing
is imported twice. Every process has a fixed share and ends by itself, so that a parent that is
killed leaves none waiting. Where forking is unsafe or pointless (not Linux, one processor, one
item, inside another fork_map, under Ray) the items are done here, one after the other. A child must
not compute with torch: its threads do not survive a fork.
"""

import multiprocessing
import os
import signal
import sys

from rolecircuits.inputs.errors import RunFailed, UserError

STOPS = (signal.SIGINT, signal.SIGTERM)


def fork_map(function, items, processes=None, cost=lambda item: 1):
    """[function(item) for item in items], in order; an error of a child is raised here.

    processes  at most this many (default: the processors that this process may use)
    cost       how long an item takes, in any unit: shares are made equally long
    raises     RunFailed where a child process died without an answer (killed, out of memory)
    """
    items = list(items)
    processes = min(len(items), processes or _processors())
    if processes < 2:
        return [function(item) for item in items]
    context = multiprocessing.get_context("fork")
    own, *others = split_evenly(items, processes, cost)
    results, children = {}, []
    try:
        for share in others:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(
                target=_work, args=(function, items, share, receiver, sender), daemon=True
            )
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            try:  # stopped before `_work` has its own handlers, a child would do our clean-up
                child.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            sender.close()
            children.append((child, receiver))
        results |= {index: function(items[index]) for index in own}
        for _, receiver in children:
            results |= _receive(receiver)
    finally:
        for child, receiver in children:
            child.terminate()
            child.join()
            receiver.close()
    return [results[index] for index in range(len(items))]


def split_evenly(items, parts, cost):
    """Indices of the items in `parts` lists of about equal cost.

    The dearest item goes first, each to the list that has the least so far.
    """
    shares, loads = [[] for _ in range(parts)], [0] * parts
    for index in sorted(range(len(items)), key=lambda index: -cost(items[index])):
        part = loads.index(min(loads))
        shares[part].append(index)
        loads[part] += cost(items[index])
    return shares


def _processors():
    ray = sys.modules.get("ray")  # a driver's threads would be missing from a forked child
    alone = (
        sys.platform != "linux"
        or multiprocessing.current_process().daemon
        or (ray and ray.is_initialized())
    )
    return 1 if alone else len(os.sched_getaffinity(0))


def _work(function, items, share, receiver, sender):
    """A child: send its share's results, or the expected error that ended it.

    Ctrl-C is the parent's to answer: it ends its children with SIGTERM, and they remove the files
    that they were writing. A defect prints its traceback here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    receiver.close()
    try:
        answer = True, {index: function(items[index]) for index in share}
    except (UserError, RunFailed, OSError) as error:
        answer = False, error
    sender.send(answer)


def _receive(receiver):
    try:
        fine, answer = receiver.recv()
    except EOFError as error:
        raise RunFailed(
            "a process that draws or tests died: killed, out of memory, or a defect"
        ) from error
    if not fine:
        raise answer
    return answer
