"""Tests import the scripts as a user's shell finds them: from the folder above."""

import os
import signal
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import rolecircuits  # noqa: E402, F401, I001  (the thread policy, before anything imports torch)
import torch  # noqa: E402

if not torch.cuda.is_available():  # read when triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `nohup make test &` ignores SIGINT, and the scripts that the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
