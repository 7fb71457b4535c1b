"""Runs stages in forked children and lets them die: torch is imported and the tiny model built
once, not once a death.

    python tests/fault_server.py MODEL_FOLDER      requests as JSON lines on stdin, answers as JSON
                                                   lines on stdout

A request is a list of children that run at once, each {"script": module or conversion, "argv":
[...], "cwd": folder, "root": folder} with at most one fault:
    at, signal    send the signal when the child is about to make its `at`-th file-system call under
                  `root`
    after         kill -9 after so many seconds
    max_bytes     no file may grow beyond this (the file system is full)
The answer is a list of {"code": exit code, negative for a signal; "calls": file-system calls under
root; "seconds"; "out"; "err"}
"""

import argparse
import contextlib
import importlib
import inspect
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

CALLS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.listdir",
    "fcntl.flock",
}


class Calls:
    """Counts the file-system calls of this process under a folder and sends itself a signal before
    one of them."""

    def __init__(self, root, at, number):
        self.root, self.at, self.number, self.count = str(root), at, number, 0
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if event not in CALLS or not any(self.concerns(event, target) for target in args[:2]):
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)

    def concerns(self, event, target):
        """True for a path under the root, for a name relative to an open folder (rmtree), and for a
        lock."""
        if event == "fcntl.flock":
            return True
        if not isinstance(target, (str, os.PathLike)):
            return False
        text = os.fspath(target)
        return text.startswith(self.root) or (
            not os.path.isabs(text) and event in ("os.remove", "os.rmdir")
        )


def run_child(request, out, err):
    """In the child: redirect, set the fault, run main(argv), end without the parent's clean-up."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    text = {"mode": "w", "encoding": "utf-8", "closefd": False}
    sys.stdout, sys.stderr = (open(end, **text) for end in (1, 2))  # noqa: SIM115
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.get("max_bytes") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_bytes"],) * 2)
    calls = Calls(request["root"], request.get("at"), request.get("signal", signal.SIGKILL))
    main_of = (
        convert
        if request["script"] == "conversion"
        else importlib.import_module(request["script"]).main
    )
    code = main_of(request["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(err, f"\ncalls {calls.count}".encode())
    return code


def convert(argv):
    """The bundled model's conversion into a cache folder, with a tiny model in the place of the 540
    MB one."""
    from rolecircuits.inputs import parser
    from rolecircuits.models import source
    from tiny_models import CONFIGS, SHAPE

    def write_tiny(gguf, folder):
        source.AutoModelForCausalLM.from_config(CONFIGS["llama"][0](**SHAPE)).save_pretrained(
            folder
        )
        (Path(folder) / "tokenizer.json").write_text("{}" * 1000)

    os.environ["XDG_CACHE_HOME"] = argv[0]
    source._convert_gguf = write_tiny
    return parser.run_script(
        lambda argv: argparse.Namespace(verbose=False), lambda args: source.bundled_folder(), []
    )


def start(request):
    """Fork a child: (process id, its output pipes, start). Pipes, because a file-size limit would
    hold for files."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = run_child(request, out_end, err_end)
        except BaseException as error:  # reported, as a code that no script has
            os.write(err_end, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)
    os.close(out_end)
    os.close(err_end)
    return child, (out, err), time.monotonic()


def finish(request, child, pipes, started):
    """Wait for a child's end: its answer."""
    if request.get("after") is not None:
        time.sleep(request["after"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds, texts = time.monotonic() - started, []
    for end in pipes:
        with open(end, encoding="utf-8", errors="replace") as file:
            texts.append(file.read())
    said, marked, calls = texts[1].rpartition("\ncalls ")
    said, calls = (said, int(calls)) if marked else (texts[1], None)
    return {"code": code, "calls": calls, "seconds": seconds, "out": texts[0], "err": said}


def take_few_resamples(n=50):
    """Let every default number of resamples be small: what the numbers are is tested elsewhere."""
    from rolecircuits.drawing import study
    from rolecircuits.edits import sweep
    from rolecircuits.stats import contrasts, index_inference, resampling, role_tests

    sweep.RESAMPLES = n
    for module in (resampling, contrasts, index_inference, role_tests, study):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__defaults__:
                few = (
                    n if value == resampling.N_RESAMPLES else value
                    for value in function.__defaults__
                )
                function.__defaults__ = tuple(few)


def warm_up():
    """Let the parent import what the stages import while they run, so that not every child does."""
    import analyze_results
    from synthetic import make_run, save_run

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = save_run(make_run(per_category=3), folder)
        analyze_results.main(["--input_dir", str(run), "--output_dir", f"{folder}/tables"])


def main(folder):
    import torch

    torch.set_num_threads(1)  # a forked child must not meet the parent's threads
    import compare_base_instruct  # noqa: F401
    from rolecircuits.capture import instrument
    from rolecircuits.drawing import run_figures, style
    from tiny_models import load_checked

    loaded = load_checked(folder)
    instrument.load_model = lambda spec, seed=None, check=None: loaded
    run_figures.FIGURES = dict(
        list(run_figures.FIGURES.items())[:2]
    )  # two of nine are written as all nine are
    take_few_resamples()
    style.DPI = 40
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        requests = json.loads(line)
        children = [start(request) for request in requests]
        answers = [
            finish(request, *child) for request, child in zip(requests, children, strict=True)
        ]
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # nothing is left to be done, and unloading torch takes seconds
