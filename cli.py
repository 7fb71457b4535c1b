"""What every script shares on the command line: one parser, one error class, one place for exit codes.

    0 everything asked for was done      2 the request is wrong (one line says what, where, what is allowed)
    1 it failed                          3 part of it failed
    130 interrupted

Nothing here imports more than the standard library, so `--help` answers at once.
"""

import argparse
import contextlib
import difflib
import gc
import os
import re
import signal
import sys
import traceback
from pathlib import Path

# numpy's BLAS and torch's OpenMP read these when they are first imported; a value set by the user stays. On a machine that
# is shared, threads that spin while they wait for one another cost far more than they bring: with one busy neighbour on two
# cores, capture of 120 prompts took 23 to 51 s with spinning threads and 3.2 s with threads that sleep, the comparison 8.6 s
# with two BLAS threads and 5.1 s with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

DEFAULT_MODEL = "bundled:smollm2-135m-instruct"
DEFAULT_RESULTS = "results_activation_analysis"
MAX_SEED = 2**32 - 1


class UserError(Exception):
    """The request is wrong: one line that says what, where and what is allowed. Exit code 2."""


class RunFailed(Exception):
    """The request was right and the work failed: one line that says where. Exit code 1."""


class Parser(argparse.ArgumentParser):
    """argparse that refuses abbreviations and answers a wrong flag with one line and the closest right one."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in unknown if flag.startswith("-")]
            culprit = (flags or unknown)[0].split("=")[0]
            close = difflib.get_close_matches(culprit, self._option_string_actions, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
            self.error(f"unknown argument {printable(culprit)}: {hint}")
        return parsed

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_script(parse_args, run, argv=None):
    """Parse, run and turn the outcome into an exit code; `run(args)` returns None, a result, or an exit code."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(args)
    except (UserError, RunFailed) as error:
        if args.verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        if args.verbose:
            traceback.print_exc()
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{place}; nothing was published", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was published, the same command starts over", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def _interrupt(signum, frame):
    raise KeyboardInterrupt


@contextlib.contextmanager
def collector_paused():
    """Import large libraries inside this block: the objects that importing makes live as long as the process.

    Looking for garbage among them took a third of the start-up time (torch, transformers and transformer_lens: 9.0 s of
    processor time with the collector, 6.3 s without). They are frozen, so that later collections pass them over. Do not
    load a model in here: what is frozen is freed only when nothing refers to it, and a model refers to itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def printable(text):
    """`text` with control characters (ANSI escapes among them) shown as escapes, safe for a terminal.

    A character that the terminal's encoding cannot show is escaped too.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def positive_int(text):
    """An integer of at least 1, or argparse's one-line refusal."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a whole number of at least 1")
    return int(text)


def seed_value(text):
    """A seed that numpy and torch both take: 0 to 2**32 - 1."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


def device_name(text):
    """auto, cpu, mps, cuda or cuda:N; whether the machine has it is checked before the model is loaded."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is none of auto, cpu, cuda, cuda:N, mps")
    return text


def add_model_arguments(parser):
    """The flags that name a model and its prompts, and those of `add_run_arguments`: what a model stage needs."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_id", default=DEFAULT_MODEL, help=f"hub id, local folder or {DEFAULT_MODEL} (the default)"
    )
    model.add_argument("--revision", help="branch, tag or commit of a hub model")
    model.add_argument(
        "--trust_remote_code", action="store_true", help="run the model's own code; needs a 40-digit --revision"
    )
    text = parser.add_argument_group("prompts")
    text.add_argument("--prompts", help="JSON file of your own prompts: {category: [text, ...]}")
    text.add_argument("--prompt_format", choices=["raw", "chat"], default="raw")
    text.add_argument("--system_prompt", help="system text for --prompt_format chat; may be empty")
    text.add_argument(
        "--bos", choices=["auto", "always", "never"], default="auto", help="auto: as TransformerLens does for the model"
    )
    add_run_arguments(parser)


def add_run_arguments(parser):
    """The flags that say how much is run and where; the pipeline takes them for both of its models."""
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--prompts_per_category", type=positive_int, help="the first N of each category (default: all; 30 are built in)"
    )
    how.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    how.add_argument("--device", type=device_name, help="auto (default), cpu, cuda, cuda:N, mps")
    how.add_argument(
        "--device_map",
        help="auto, balanced, balanced_low_0 or sequential (accelerate), or a JSON file {module: device}; excludes --device",
    )
    how.add_argument("--batch_size", type=positive_int, default=64, help="prompts per forward pass (default 64)")
    how.add_argument("--seed", type=seed_value, default=123)


def check_model_arguments(args):
    """Refuse combinations of model flags that contradict each other, before anything is imported or loaded."""
    if args.device and args.device_map:
        raise UserError(f"--device {args.device} with --device_map {printable(args.device_map)}: give one of them")
    if args.system_prompt is not None and args.prompt_format != "chat":
        raise UserError("--system_prompt needs --prompt_format chat; raw prompts have no system text")
    if args.bos != "auto" and args.prompt_format == "chat":
        raise UserError(f"--bos {args.bos} with --prompt_format chat: the chat template places the BOS token itself")
    if args.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", args.revision or ""):
        raise UserError("--trust_remote_code runs code from the model: pin it with --revision and the 40-digit commit")


def check_output_dir(path, flag="--output_dir"):
    """The output folder as a Path, refused now (not after the work) where it cannot be written."""
    path = Path(path)
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {existing} cannot be written to")
    return path
