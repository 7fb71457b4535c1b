"""fork_map gives what a plain loop gives, hands errors on, and leaves no process behind."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from rolecircuits.engines.fork_map import fork_map, split_evenly
from rolecircuits.inputs import parser
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.runs.files import replaced_file


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_are_those_of_a_loop_in_order(processes):
    shared = np.arange(7)
    assert fork_map(lambda i: shared[i] ** 2, range(7), processes) == [i**2 for i in range(7)]
    assert fork_map(lambda i: i, [], processes) == []


def test_the_items_are_really_shared_among_processes():
    assert len(set(fork_map(lambda _: os.getpid(), range(6), 3))) == 3


@pytest.mark.parametrize(
    ("costs", "parts", "expected"),
    [
        ([1] * 5, 2, [[0, 2, 4], [1, 3]]),
        ([1, 1, 1, 7, 1, 1, 1, 1, 1], 2, [[3, 8], [0, 1, 2, 4, 5, 6, 7]]),
        ([1, 2, 3], 4, [[2], [1], [0], []]),
    ],
)
def test_shares_are_equally_long(costs, parts, expected):
    assert split_evenly(costs, parts, cost=lambda cost: cost) == expected
    assert fork_map(lambda i: 2 * i, costs, parts, cost=lambda cost: cost) == [2 * i for i in costs]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_is_raised_here_whichever_process_met_it(bad):
    def fail(i):
        if i == bad:
            raise UserError(f"item {i} is wrong")

    with pytest.raises(UserError, match=f"item {bad} is wrong"):
        fork_map(fail, range(2), 2)
    assert not multiprocessing.active_children()


def test_a_child_that_is_killed_is_an_error_not_a_missing_result():
    parent = os.getpid()

    def die(i):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunFailed, match="died"):
        fork_map(die, range(4), 2)
    assert not multiprocessing.active_children()


def test_a_child_that_is_stopped_leaves_no_half_written_file(tmp_path):
    """The parent fails (a full disk, Ctrl-C) while a child is writing."""
    parent, begun = os.getpid(), tmp_path / "begun"

    def write(_):
        if os.getpid() != parent:
            with replaced_file(tmp_path / "figure.csv"):
                begun.touch()
                time.sleep(60)
        while not begun.exists():
            time.sleep(0.01)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="full"):
        fork_map(write, range(2), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_a_child_that_is_stopped_as_it_starts_runs_nothing_of_its_parent(tmp_path):
    """What a parent does that fails at once, or Ctrl-C at that moment."""
    parent, stop = os.getpid(), [True]
    os.register_at_fork(after_in_child=lambda: stop and os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.signal(signal.SIGTERM, parser._interrupt)
    try:
        with pytest.raises(RunFailed, match="died"):
            fork_map(lambda i: i, range(2), 2)
    except BaseException:
        if os.getpid() != parent:  # the child came out of fork_map
            (tmp_path / "escaped").touch()
            os._exit(1)
        raise
    finally:
        stop.clear()  # what was registered stays for good
        signal.signal(signal.SIGTERM, handler)
    assert not list(tmp_path.iterdir())
