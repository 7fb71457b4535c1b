"""What every script shares on the command line: one parser, one error class, one place for exit codes.

    0 everything asked for was done      2 the request is wrong (one line says what, where, what is allowed)
    1 it failed                          3 part of it failed
    130 interrupted

Nothing here imports more than the standard library, so `--help` answers at once.
"""

import argparse
import contextlib
import difflib
import errno
import gc
import io
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
# Figures only go to files. matplotlib checks this when it is imported, so a value that it does not know would end every
# script that draws with a traceback.
os.environ["MPLBACKEND"] = "Agg"

DEFAULT_MODEL = "bundled:smollm2-135m-instruct"
DEFAULT_RESULTS = "results_activation_analysis"
MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9
# What the system answers when a path that the user named cannot be used: the request is wrong. Everything else (a full
# disk, a broken one) is a failure.
WRONG_PATH = frozenset(
    getattr(errno, name) for name in "ENOENT EACCES EPERM EISDIR ENOTDIR EEXIST ENAMETOOLONG ELOOP EROFS".split()
)
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$", re.IGNORECASE)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


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
        self.exit(2, f"{printable(self.prog)}: error: {printable(message)}\n")


def run_script(parse_args, run, argv=None):
    """Parse, run and turn the outcome into an exit code; `run(args)` returns None, a result, or an exit code.

    Every message passes `printable` here, so that paths and texts inside it cannot move the terminal or break the line.
    """
    _escape_what_cannot_be_shown()
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(args)
        print(end="", flush=True)  # print, because sys.stdout may be None
    except (UserError, RunFailed) as error:
        if args.verbose:
            traceback.print_exc()
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:
        _abandon_output()
        print("error: the reader of the standard output went away; files already published stay", file=sys.stderr)
        return 1
    except OSError as error:
        if args.verbose:
            traceback.print_exc()
        place = f" ({printable(error.filename)})" if error.filename else ""
        print(f"error: {printable(error.strerror or error)}{place}; nothing half-done was published", file=sys.stderr)
        _abandon_output()
        return 2 if error.filename and error.errno in WRONG_PATH else 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-done was published, the same command starts again", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _abandon_output():
    """Where the standard output takes nothing more, what is still buffered goes nowhere: or the interpreter would complain
    again when it ends, and with another exit code."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_what_cannot_be_shown():
    """In a locale that is not UTF-8, a character that cannot be encoded is written as an escape, not as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    """An integer of at least 1 (and at most MAX_COUNT), or argparse's one-line refusal."""
    if not re.fullmatch(r"[0-9]{1,100}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{printable(text[:40])!r} is not a whole number of at least 1")
    if int(text) > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text[:40]} is too large; allowed are 1 to {MAX_COUNT}")
    return int(text)


def seed_value(text):
    """A seed that numpy and torch both take: 0 to 2**32 - 1."""
    if not re.fullmatch(r"[0-9]{1,100}", text) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{printable(text[:40])!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


def device_name(text):
    """auto, cpu, mps, cuda or cuda:N; whether the machine has it is checked before the model is loaded."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{printable(text[:40])!r} is none of auto, cpu, cuda, cuda:N, mps")
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


def add_verify_argument(parser):
    """--no_verify, for every script that reads run folders."""
    parser.add_argument(
        "--no_verify", action="store_true", help="read runs without comparing their files' SHA-256 with manifest.json"
    )


def say_unverified(args):
    """One line if --no_verify was given, so that no reader takes unchecked numbers for checked ones."""
    if args.no_verify:
        print("note: --no_verify: the SHA-256 of the run's files is not checked")


def check_model_arguments(args):
    """Refuse combinations of model flags that contradict each other, before anything is imported or loaded."""
    refuse_secrets(args)
    if args.device and args.device_map:
        raise UserError(f"--device {args.device} with --device_map {printable(args.device_map)}: give one of them")
    check_prompt_arguments(args)
    if args.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", args.revision or ""):
        raise UserError("--trust_remote_code runs code from the model: pin it with --revision and the 40-digit commit")


def check_prompt_arguments(args):
    """The part of `check_model_arguments` that is about how prompts are fed."""
    if args.system_prompt is not None and args.prompt_format != "chat":
        raise UserError("--system_prompt needs --prompt_format chat; raw prompts have no system text")
    check_text(args.system_prompt, "--system_prompt")
    if args.bos != "auto" and args.prompt_format == "chat":
        raise UserError(f"--bos {args.bos} with --prompt_format chat: the chat template places the BOS token itself")


def check_text(text, where):
    """Refuse text that no tokenizer takes: bytes of the command line that are not UTF-8, half a surrogate pair."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text or ""):
        raise UserError(f"{where}: holds bytes that are not UTF-8, or half a surrogate pair; neither is a character")


def refuse_secrets(args):
    """Refuse arguments that hold an access token: a run's arguments are stored beside its results and shared with them.

    A token is the value of an environment variable named ..._TOKEN, ..._SECRET, ..._PASSWORD or ..._API_KEY, or looks
    like one of the hub. The message names the flag, never the token.
    """
    secrets = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    for flag, value in vars(args).items():
        text = str(value)
        if any(secret in text for secret in secrets) or HUB_TOKEN.search(text):
            raise UserError(f"--{flag}: holds an access token, and arguments are stored with the run; take it out")


def check_output_dir(path, flag="--output_dir", link=None):
    """The output folder as a Path, refused now (not after the work) where it cannot be written.

    link  the name of the symlink that will point at the new run; what lies there must be a symlink
    """
    path = Path(path)
    existing = path
    try:
        while not existing.exists():
            if existing.is_symlink():
                raise UserError(f"{flag} {path}: {existing} is a symlink to nowhere")
            existing = existing.parent
        if link and (path / link).exists() and not (path / link).is_symlink():
            raise UserError(
                f"{flag} {path}: {link} in it is not a symlink; move it away, the newest run is linked there"
            )
        inside_run = (path / "manifest.json").is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {str(path)[:200]}: {getattr(error, 'strerror', None) or error}") from error
    if inside_run:
        raise UserError(f"{flag} {path}: is a run folder, which is never written to; name another folder")
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {existing} cannot be written to")
    return path
