"""One line, one exit code: what a shell user meets when something is wrong."""

import argparse
import io
import signal
import subprocess
import sys

import pytest

from conftest import PROJECT
from rolecircuits.inputs import arguments, errors
from rolecircuits.inputs import parser as parser_module

SLEEPER = """
import sys, time
from rolecircuits.inputs import parser as cli
def run(args):
    print("ready", flush=True)
    time.sleep(300)
sys.exit(cli.run_script(cli.Parser().parse_args, run, []))
"""


@pytest.fixture
def parser():
    parser = parser_module.Parser(prog="stage.py")
    arguments.add_model_arguments(parser)
    parser.add_argument("--output_dir")
    return parser


def refused(parser, capsys, *argv):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(argv)
    out, err = capsys.readouterr()
    assert (
        exit_.value.code == 2
        and out == ""
        and err.count("\n") == 1
        and err.startswith("stage.py: error: ")
    )
    return err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--model", "--model_id"),
        ("--prompt-format", "--prompt_format"),
        ("--output_dri=x", "--output_dir"),
        ("--sed", "--seed"),
    ],
)
def test_misspelt_flag_is_refused_and_the_right_one_named(parser, capsys, given, meant):
    assert f"did you mean {meant}?" in refused(parser, capsys, given, "x")


def test_abbreviations_are_refused(parser, capsys):
    assert "--prompts_per_category" in refused(parser, capsys, "--prompts_per_cat", "3")
    assert parser.parse_args(["--prompts_per_category", "3"]).prompts_per_category == 3


def test_unlike_flags_and_stray_words_get_no_guess(parser, capsys):
    assert "--help lists the flags" in refused(parser, capsys, "--zzzz")
    assert "unknown argument stray" in refused(parser, capsys, "stray")
    assert "\x1b" not in refused(parser, capsys, "--\x1b[31mred")


@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "", " 3", "٣", "1e3", "\x1b[31m"])
def test_counts_are_whole_numbers_from_1(parser, capsys, value):
    err = refused(parser, capsys, f"--prompts_per_category={value}")
    assert "whole number of at least 1" in err and "\x1b" not in err


@pytest.mark.parametrize("value", ["-1", str(2**32), "x", "1.0"])
def test_seeds_outside_numpys_range_are_refused(parser, capsys, value):
    assert f"from 0 to {2**32 - 1}" in refused(parser, capsys, f"--seed={value}")


def test_the_ends_of_the_seed_range_are_taken(parser):
    assert [parser.parse_args(["--seed", s]).seed for s in ("0", str(2**32 - 1))] == [0, 2**32 - 1]


@pytest.mark.parametrize("value", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"])
def test_devices_that_may_exist_are_taken(value):
    assert arguments.device_name(value) == value


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cuda:x", "cpu ", "CPU", "cuda:-1"])
def test_other_devices_are_refused(value):
    with pytest.raises(argparse.ArgumentTypeError, match="none of auto, cpu, cuda, cuda:N, mps"):
        arguments.device_name(value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--device", "cpu", "--device_map", "auto"], "give one of them"),
        (["--system_prompt", ""], "needs --prompt_format chat"),
        (["--prompt_format", "chat", "--bos", "never"], "is fed as it is; name another"),
        (["--chat_template", "rag"], "--chat_template needs --prompt_format chat"),
        (["--template_arg", "a=1"], "--template_arg needs --prompt_format chat"),
        (["--date", "2026-01-31"], "--date needs --prompt_format chat"),
        (["--prompt_format", "chat", "--chat_template", "no.jinja"], "no such file"),
        (["--trust_remote_code"], "pin it with --revision"),
        (["--trust_remote_code", "--revision", "main"], "40-digit commit"),
    ],
)
def test_contradicting_flags_are_refused(parser, argv, said):
    with pytest.raises(errors.UserError, match=said):
        arguments.check_model_arguments(parser.parse_args(argv))


def test_flags_that_agree_pass(parser):
    for argv in (
        [],
        ["--prompt_format", "chat", "--system_prompt", ""],
        ["--trust_remote_code", "--revision", "a" * 40],
    ):
        arguments.check_model_arguments(parser.parse_args(argv))


def outcome(capsys, effect, argv=()):
    """(exit code, stderr) of a script whose run() raises or returns `effect`."""

    def run(args):
        if isinstance(effect, BaseException):
            raise effect
        return effect

    code = parser_module.run_script(
        parser_module.Parser(prog="stage.py").parse_args, run, list(argv)
    )
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("effect", "code", "said"),
    [
        (None, 0, ""),
        ({"a": 1}, 0, ""),
        (3, 3, ""),
        (errors.UserError("--seed 7: no"), 2, "error: --seed 7: no\n"),
        (errors.RunFailed("layer 3: NaN"), 1, "error: layer 3: NaN\n"),
        (
            OSError(28, "No space left on device", "/tmp/x"),
            1,
            "error: No space left on device (/tmp/x); nothing half-done was published\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: nothing half-done was published, the same command starts again\n",
        ),
    ],
)
def test_exit_codes(capsys, effect, code, said):
    assert outcome(capsys, effect) == (code, said)


def test_a_defect_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        outcome(capsys, ZeroDivisionError())


def test_verbose_shows_the_traceback(capsys):
    assert "Traceback" not in outcome(capsys, errors.UserError("x"))[1]
    assert "Traceback" in outcome(capsys, errors.UserError("x"), ["-v"])[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_script_with_130(number):
    command = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stderr.read().startswith("interrupted")
        assert process.wait(10) == 130


def test_printable_escapes_what_moves_a_terminal():
    assert errors.printable("a\x1b[31mb\r\n\x00\u202e") == r"a\x1b[31mb\r\n\x00\u202e"
    assert errors.printable("naïve 你好 😀 [/INST] $x$") == "naïve 你好 😀 [/INST] $x$"
    assert errors.printable(7) == "7"


def test_printable_fits_the_terminals_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert errors.printable("é") == r"\xe9"


def test_output_folder_is_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.UserError, match="is a file, not a folder"):
        arguments.check_output_dir(tmp_path / "file" / "deep" / "er")
    assert (
        arguments.check_output_dir(str(tmp_path / "new" / "folder")) == tmp_path / "new" / "folder"
    )
    assert not (tmp_path / "new").exists()


def test_read_only_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parser_module.os, "access", lambda path, mode: False)
    with pytest.raises(errors.UserError, match=r"--output_dir .*cannot be written to"):
        arguments.check_output_dir(tmp_path)


def test_a_model_loaded_between_two_imports_is_freed():
    """What is frozen while it refers to itself is never freed: only the first import freezes."""
    code = (
        "import gc, weakref\n"
        "from rolecircuits.inputs.parser import collector_paused\n"
        "with collector_paused(): import json\n"
        "class Model: pass\n"
        "model = Model(); model.itself = model; seen = weakref.ref(model)\n"
        "with collector_paused(): import decimal\n"
        "del model; gc.collect(); assert gc.get_freeze_count() and seen() is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


@pytest.mark.parametrize(
    ("loaded", "ends_at_once"),
    [("torch", True), ("torch ray", False), ("torch matplotlib", False), ("numpy", False)],
)
def test_leaving_writes_everything_first(loaded, ends_at_once):
    """With torch the interpreter is not taken apart, unless something tidies up when it is."""
    code = f"""
import atexit, sys
for name in {loaded.split()!r}:
    sys.modules.setdefault(name, sys)
atexit.register(lambda: print("taken apart", file=sys.stderr))
from rolecircuits.inputs.parser import leave
print("x" * 300_000)
print("a warning", end="", file=sys.stderr)
leave(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 3
    assert done.stdout == "x" * 300_000 + "\n"
    assert done.stderr == "a warning" + ("" if ends_at_once else "taken apart\n")


def test_leaving_while_profiled_is_the_usual_end():
    code = "import sys; sys.modules['torch'] = sys; sys.path.insert(0, '.'); "
    code += "from rolecircuits.inputs.parser import leave; leave(0)"
    profiled = f"import cProfile; cProfile.run({code!r})"
    done = subprocess.run([sys.executable, "-c", profiled], capture_output=True, text=True)
    assert "function calls" in done.stdout
