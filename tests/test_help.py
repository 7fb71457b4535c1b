"""--help of every script: 80 columns, every default stated, every example a command that parses."""

import argparse
import os
import re
import shlex
import subprocess
import sys

import pytest

import activation_analysis
import analyze_results
import compare_base_instruct
import cross_model_correlation
import experiment
import interventions
import language_study
import monitor_chat
import output_manager
import probe_transfer
import prompts
import report
import run_pipeline
import tuning_study
import visualize_results
from conftest import PROJECT
from rolecircuits.inputs.arguments import OLD_RUN_TYPES, RUN_TYPES, run_type
from rolecircuits.inputs.parser import Parser

SCRIPTS = {
    module.__name__: module
    for module in (
        activation_analysis,
        analyze_results,
        compare_base_instruct,
        cross_model_correlation,
        experiment,
        interventions,
        language_study,
        monitor_chat,
        output_manager,
        probe_transfer,
        prompts,
        report,
        run_pipeline,
        tuning_study,
        visualize_results,
    )
}
WIDTH = 80
MODELS = {"--model_id", "--base_id"}  # what they name is not a file
NEEDED = ("tests/data/", "results_activation_analysis/", "analysis_results/", "comparison_results/")


def test_every_script_is_looked_at():
    scripts = {path.stem for path in PROJECT.glob("*.py") if "def main(" in path.read_text()}
    assert scripts == set(SCRIPTS)


class Stopped(Exception):
    """Raised in place of parsing, with the parser of a script."""


def parser_of(module, monkeypatch):
    """The Parser that a script builds."""

    def stop(self, args=None, namespace=None):
        raise Stopped(self)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", stop)
        with pytest.raises(Stopped) as stopped:
            module.parse_args([])
    return stopped.value.args[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_80_columns(name):
    done = subprocess.run(
        [sys.executable, PROJECT / f"{name}.py", "--help"],
        env=os.environ | {"COLUMNS": str(WIDTH)},
        capture_output=True,
        text=True,
        check=True,
    )
    wide = [line for line in done.stdout.splitlines() if len(line) > WIDTH]
    assert not wide, "\n".join(wide)
    assert str(PROJECT) not in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_says_what_it_does_and_its_default(name, monkeypatch):
    parser = parser_of(SCRIPTS[name], monkeypatch)
    shown = parser.format_help()
    for action in parser._actions:
        where = f"{name} {action.option_strings or action.dest}"
        assert action.help and action.help.strip(), f"{where}: no help"
        said = parser._get_formatter()._expand_help(action)
        assert " ".join(said.split())[:30] in " ".join(shown.split()), where
        if action.default in (None, False, [], argparse.SUPPRESS):
            continue
        default = str(action.default).removeprefix(f"{PROJECT}{os.sep}")
        assert "default" in said and default in said, f"{where}: {said!r} lacks {default!r}"


def examples_of(module):
    """[words after the script's name] of the commands that a docstring shows, indented by four."""
    joined = re.sub(r"\\\n\s*", "", module.__doc__)
    lines = re.findall(r"^    (python .+)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_is_a_command_that_parses(name):
    examples = examples_of(SCRIPTS[name])
    assert examples
    for python, script, *words in examples:
        assert (python, script) == ("python", f"{name}.py")
        SCRIPTS[name].parse_args(words)
        for word in words:
            path = word.split("=")[-1]
            if "/" in path and not path.startswith(NEEDED) and not MODELS & set(words):
                raise AssertionError(f"{name}: {word} is not there after make demo")
            if path.startswith("tests/"):
                assert (PROJECT / path).exists()


@pytest.mark.parametrize("text", [*RUN_TYPES, *OLD_RUN_TYPES])
def test_run_types_are_one_word_each_and_old_ones_are_read(text):
    meant = run_type(text)
    assert meant in RUN_TYPES
    args = visualize_results.parse_args(["--output_type", text])
    assert args.output_type == meant
    if meant == "intervention":
        with pytest.raises(SystemExit):
            activation_analysis.parse_args(["--output_type", text])
    else:
        assert activation_analysis.parse_args(["--output_type", text]).output_type == meant


@pytest.mark.parametrize("script", [activation_analysis, visualize_results])
def test_the_default_run_type_is_instruct(script):
    assert script.parse_args([]).output_type == "instruct"
