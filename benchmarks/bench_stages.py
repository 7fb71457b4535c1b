"""How long a user waits: every stage as a whole process, on the bundled model's 120 prompts.

    python benchmarks/bench_stages.py
    python benchmarks/bench_stages.py --runs 3 --only help figures

Each command runs once uncounted (it fills the disk cache and converts the bundled model), then
--runs times, the stages in turn, so that a machine whose speed drifts cannot favour one. Wall
seconds are what a user waits, CPU seconds (user and system, child processes included) hardly move
when a neighbour is busy. Nothing is written outside a temporary folder, but for Python's bytecode,
which is kept even where PYTHONDONTWRITEBYTECODE forbids it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from rolecircuits.inputs.arguments import positive_int  # noqa: E402
from rolecircuits.inputs.errors import RunFailed  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

SCRIPTS = (
    "activation_analysis.py",
    "analyze_results.py",
    "compare_base_instruct.py",
    "cross_model_correlation.py",
    "experiment.py",
    "interventions.py",
    "output_manager.py",
    "prompts.py",
    "report.py",
    "run_pipeline.py",
    "visualize_results.py",
)
STAGES = {f"help: {script}": f"{script} --help" for script in SCRIPTS}
STAGES |= {
    "analysis": "activation_analysis.py --output_type base",
    "analysis, chat": "activation_analysis.py --prompt_format chat --raw none",
    "figures": "visualize_results.py --output_type base",
    "tests": "analyze_results.py --input_dir results_activation_analysis/latest_base --top_k 5",
    "comparison": "compare_base_instruct.py",
    "report": "report.py results_activation_analysis/latest_base",
    "interventions": "interventions.py --config_file ten.json --controls 0",
}
NEEDS_RUNS = ("figures", "tests", "comparison", "report", "interventions")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=positive_int, default=5)
    names = ["help", *STAGES]
    only = f"help (of every script); {'; '.join(name for name in STAGES if ':' not in name)}"
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="STAGE", help=only
    )
    return parser.parse_args(argv)


def run(args):
    stages = [name for name in STAGES if {name, name.split(":")[0]} & set(args.only)]
    with tempfile.TemporaryDirectory() as folder:
        write_plan(Path(folder) / "ten.json")
        if set(stages) & set(NEEDS_RUNS):
            for name in ("analysis", "analysis, chat"):
                clock(STAGES[name], folder)
        timed = {name: [] for name in stages}
        for turn in range(args.runs + 1):
            for name in stages:
                seconds = clock(STAGES[name], folder)
                if turn:
                    timed[name].append(seconds)
    print(f"medians of {args.runs} runs (min to max), {os.cpu_count()} processors")
    for name, runs in timed.items():
        wall, cpu = (sorted(column) for column in zip(*runs, strict=True))
        print(
            f"{name:32} {statistics.median(wall):6.2f} s wall ({wall[0]:.2f} to {wall[-1]:.2f})   "
            f"{statistics.median(cpu):6.2f} s CPU   {STAGES[name]}"
        )


def write_plan(path):
    """Ten edits without controls: five heads, each zeroed and halved."""
    heads = [(3, 2), (7, 8), (11, 1), (16, 3), (23, 5)]
    edit = [
        {"type": "head", "layer": layer, "head": head, "method": method}
        for layer, head in heads
        for method in ("zero_out", "half_out")
    ]
    path.write_text(json.dumps({"schema_version": 1, "interventions": edit}), encoding="utf-8")


def clock(command, folder):
    """(wall, CPU) seconds of one process and its children."""
    script, *arguments = command.split()
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }
    call = [sys.executable, PROJECT / script, *arguments]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise RunFailed(f"{command}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
    return wall, sum(after[2:4]) - sum(before[2:4])


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
