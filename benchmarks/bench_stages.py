"""How long a user waits: every stage as a whole process, on the bundled model's 120 prompts.

    python benchmarks/bench_stages.py
    python benchmarks/bench_stages.py --runs 5 --only help figures floor

A stage of every script runs once uncounted, which fills the disk cache, converts the bundled model
and, under `python -X importtime`, shows which packages took longest to import. Then the stages run
--runs times in turn, so that a machine whose speed drifts cannot favour one. Wall seconds are what
a user waits, CPU seconds (user and system, child processes included) hardly move when a neighbour
is busy. Ratios are medians of the pairs of one turn. All stages take under eight minutes.
Nothing is written outside a temporary folder, but for Python's bytecode, which is kept even where
PYTHONDONTWRITEBYTECODE forbids it.
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
from rolecircuits.models.source import bundled_folder  # noqa: E402

SCRIPTS = (
    "activation_analysis.py",
    "analyze_results.py",
    "compare_base_instruct.py",
    "cross_model_correlation.py",
    "experiment.py",
    "interventions.py",
    "language_study.py",
    "monitor_chat.py",
    "output_manager.py",
    "probe_transfer.py",
    "prompts.py",
    "report.py",
    "run_pipeline.py",
    "tuning_study.py",
    "visualize_results.py",
)
STAGES = {f"help: {script}": f"{script} --help" for script in SCRIPTS}
STAGES |= {
    "analysis": "activation_analysis.py --output_type base",
    "analysis, chat": "activation_analysis.py --prompt_format chat",
    "analysis, crossed": "activation_analysis.py --prompts crossed --output_dir crossed",
    "floor, raw": "benchmarks/plain_pass.py MODEL --prompt_format raw",
    "floor, chat": "benchmarks/plain_pass.py MODEL --prompt_format chat",
    "floor, figures": "-c import matplotlib.pyplot, pandas",
    "figures": "visualize_results.py --output_type base",
    "tests": "analyze_results.py --input_dir results_activation_analysis/latest_base --top_k 5",
    "comparison": "compare_base_instruct.py",
    "report": "report.py results_activation_analysis/latest_base",
    "interventions": "interventions.py --config_file plan.json --controls 0",
}
RATIOS = (  # what a user waits beside what any such process takes
    ("analysis", "floor, raw", 1.10),
    ("analysis, chat", "floor, chat", 0.75),
    ("analysis, crossed", "analysis", 2.0),
    ("figures", "floor, figures", 2.5),
)
SHOWN, SHORTEST = 6, 0.05  # packages of a stage that are named, and how long they took, s
PASS = "activation_analysis.py"  # imports what the floors import
NEEDS_RUNS = ("figures", "tests", "comparison", "report", "interventions")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=positive_int, default=2, help="counted runs (default 2)")
    names = list(dict.fromkeys(["help", "floor", *STAGES]))
    only = f"help (of every script); floor (all); {'; '.join(n for n in STAGES if ':' not in n)}"
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="STAGE", help=only
    )
    return parser.parse_args(argv)


def run(args):
    started, only = time.perf_counter(), set(args.only)
    groups = {name: name.split(":")[0].split("floor,")[0] or "floor" for name in STAGES}
    stages = [name for name in STAGES if {name, groups[name]} & only]
    with tempfile.TemporaryDirectory() as folder:
        write_plan(Path(folder) / "plan.json")
        imports = {name: packages(name, folder) for name in uncounted(stages)}
        timed = {name: [] for name in stages}
        for name in args.runs * stages:
            timed[name].append(clock(STAGES[name], folder))
    print(f"medians of {args.runs} runs (min to max), {os.cpu_count()} processors")
    for name, runs in timed.items():
        wall, cpu = (sorted(column) for column in zip(*runs, strict=True))
        print(
            f"{name:32} {statistics.median(wall):6.2f} s wall ({wall[0]:.2f} to {wall[-1]:.2f})   "
            f"{statistics.median(cpu):6.2f} s CPU   {STAGES[name]}"
        )
    print_ratios(timed)
    for name, seconds in imports.items():
        if name.startswith(("help", "floor")):
            continue
        said = ", ".join(f"{package} {took:.2f}" for package, took in seconds)
        print(f"imports of {name}, s: {said}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} min")


def uncounted(stages):
    """One stage of every script, and first the runs that others of these stages read."""
    read = ["analysis", "analysis, chat"] if set(stages) & set(NEEDS_RUNS) else []
    chosen = {}
    for name in [*read, *stages]:
        script = STAGES[name].split()[0].replace("benchmarks/plain_pass.py", PASS)
        chosen.setdefault(name if name.startswith("help") else script, name)
    return list(dict.fromkeys([*read, *chosen.values()]))


def print_ratios(timed):
    """The paired ratios of RATIOS whose two stages were run."""
    for name, other, goal in RATIOS:
        if not {name, other} <= set(timed):
            continue
        said = []
        for unit, column in (("wall", 0), ("CPU", 1)):
            pairs = zip(timed[name], timed[other], strict=True)
            ratios = sorted(one[column] / two[column] for one, two in pairs)
            middle = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            said.append(f"{unit} {middle}")
        print(f"{name} / {other}: {', '.join(said)}; goal {goal:.2f}")


def packages(name, folder):
    """[(package, seconds that importing its own modules took)] of a stage, the longest first."""
    done = call(STAGES[name], folder, "-X", "importtime")
    took = {}
    for line in done.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            package = parts[2].strip().split(".")[0]
            took[package] = took.get(package, 0.0) + int(parts[0]) / 1e6
    longest = sorted(took.items(), key=lambda item: -item[1])
    return [(package, seconds) for package, seconds in longest[:SHOWN] if seconds >= SHORTEST]


def write_plan(path):
    """Two edits without controls: a head zeroed and halved."""
    heads = [(7, 8)]
    edit = [
        {"type": "head", "layer": layer, "head": head, "method": method}
        for layer, head in heads
        for method in ("zero_out", "half_out")
    ]
    path.write_text(json.dumps({"schema_version": 1, "interventions": edit}), encoding="utf-8")


def clock(command, folder):
    """(wall, CPU) seconds of one process and its children."""
    before, start = os.times(), time.perf_counter()
    call(command, folder)
    wall, after = time.perf_counter() - start, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def call(command, folder, *options):
    """The finished process of a stage."""
    script, _, rest = command.partition(" ")
    if script == "-c":
        words = [sys.executable, *options, "-c", rest]
    else:
        arguments = [str(bundled_folder()) if word == "MODEL" else word for word in rest.split()]
        words = [sys.executable, *options, PROJECT / script, *arguments]
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"{command}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
    return done


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
