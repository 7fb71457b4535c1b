"""Tests import the scripts as a user's shell finds them: from the folder above."""

import os
import signal
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # read when triton is imported: its kernels then run on the CPU

import rolecircuits  # noqa: E402, F401  (the thread policy, before anything imports torch)

# `nohup make test &` ignores SIGINT, and the scripts that the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
