"""What every script shares on the command line: one parser, and one place for exit codes.

    0    everything asked for was done
    1    it failed
    2    the request is wrong (one line says what, where, what is allowed)
    3    part of it failed
    130  interrupted

Nothing here imports more than the standard library, so `--help` answers at once.
"""

import argparse
import contextlib
import difflib
import errno
import gc
import io
import os
import signal
import sys
import traceback

from rolecircuits.inputs.errors import RunFailed, UserError, printable

TIDY_AT_EXIT = ("ray", "matplotlib")  # one stops its processes, the other removes a folder
# What the system answers when a path that the user named cannot be used: the request is wrong.
# Everything else (a full disk, a broken one) is a failure.
WRONG_PATH = frozenset(
    getattr(errno, name)
    for name in "ENOENT EACCES EPERM EISDIR ENOTDIR EEXIST ENAMETOOLONG ELOOP EROFS".split()
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they are written, and the default of every option that has one."""

    def _get_help_string(self, action):
        text, default = action.help, action.default
        if "default" in text or default in (None, False, [], argparse.SUPPRESS):
            return text
        return f"{text} (default {default})"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; a wrong flag gets one line that names the closest one."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(
            "-v", "--verbose", action="store_true", help="show the traceback of an error"
        )

    def parse_args(self, args=None, namespace=None):
        # intermixed: a folder may come after a flag; argparse would take an optional one as missing
        mixed = self._get_positional_actions()
        parse = self.parse_known_intermixed_args if mixed else self.parse_known_args
        parsed, unknown = parse(args, namespace)
        if unknown:
            flags = [flag for flag in unknown if flag.startswith("-")]
            culprit = (flags or unknown)[0].split("=")[0]
            close = difflib.get_close_matches(culprit, self._option_string_actions, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
            self.error(f"unknown argument {printable(culprit)}: {hint}")
        return parsed

    def error(self, message):
        self.exit(2, f"{printable(self.prog)}: error: {printable(message)}\n")


def say_notes(notes):
    """Print what a user must know, a line each."""
    for note in notes:
        print(f"note: {note}")


def say_failed(failed):
    """Print what was lost, [(id, reason)], a line each."""
    for name, reason in failed:
        print(f"failed: {printable(name)}: {printable(reason)}")


def run_script(parse_args, run, argv=None, again="starts again"):
    """Parse, run and turn the outcome into an exit code.

    run    function of the arguments; returns an exit code, or anything else (0)
    again  what the same command does after an interrupt
    Every message passes `printable` here, so that paths and texts in it cannot move the terminal.
    """
    _escape_what_cannot_be_shown()
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(args)
        print(end="", flush=True)  # print, because sys.stdout may be None
    except BrokenPipeError:
        _abandon_output()
        _say("error: the reader of the standard output went away; files already published stay")
        return 1
    except (UserError, RunFailed, OSError) as error:
        if args.verbose:
            traceback.print_exc()
        if not isinstance(error, OSError):
            _say(f"error: {printable(error)}")
            return 2 if isinstance(error, UserError) else 1
        place = f" ({printable(error.filename)})" if error.filename else ""
        why = printable(error.strerror or error)
        _say(f"error: {why}{place}; nothing half-done was published")
        _abandon_output()
        return 2 if error.filename and error.errno in WRONG_PATH else 1
    except KeyboardInterrupt:
        _say(f"interrupted: nothing half-done was published, the same command {again}")
        return 130
    return code if isinstance(code, int) else 0


def leave(code):
    """End the process with this exit code.

    Where torch is loaded the interpreter is not taken apart first: that takes 0.4 s and frees what
    the system frees anyway. All files are closed by then. Libraries that tidy up at the end are
    given the time, and so is whoever profiles or traces this process.
    """
    tidied = any(name in sys.modules for name in TIDY_AT_EXIT)
    if "torch" not in sys.modules or tidied or _is_watched():
        sys.exit(code)
    try:
        print(end="", flush=True)
        print(end="", flush=True, file=sys.stderr)
    except (OSError, ValueError):  # ValueError: it is closed
        sys.exit(code)
    os._exit(code)


def _is_watched():
    """Whether somebody profiles, traces or looks into this process; from Python 3.12 on profilers
    and coverage use sys.monitoring.
    """
    monitoring = getattr(sys, "monitoring", None)
    tools = [monitoring.get_tool(i) for i in range(6)] if monitoring is not None else []
    tools += [sys.getprofile(), sys.gettrace()]
    return bool(sys.flags.interactive) or any(tool is not None for tool in tools)


def _say(line):
    print(line, file=sys.stderr)


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _abandon_output():
    """Let what is still buffered go nowhere, where the standard output takes nothing more.

    Else the interpreter would complain again when it ends, and with another exit code.
    """
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_what_cannot_be_shown():
    """A character that the locale cannot encode is written as an escape and ends no script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def collector_paused():
    """Import large libraries inside this block: what importing makes lives as long as the process.

    Looking for garbage among it took a third of the start-up time (torch, transformers and
    transformer_lens: 9.0 s of processor time with the collector, 6.3 s without). It is frozen, so
    that later collections pass it over, but only the first time: by the second there may be a
    model, and what is frozen is freed only when nothing refers to it, as a model does to itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():
            gc.freeze()
    finally:
        if enabled:
            gc.enable()
