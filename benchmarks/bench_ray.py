"""What a second worker brings: the same layers of a sweep on two Ray workers and on one.

    ratio = seconds with two workers / seconds with one        goal 0.6; 0.5 would cost nothing

    python benchmarks/bench_ray.py
    python benchmarks/bench_ray.py --layers 4 --prompts_per_category 10 --repeats 3

A thread a worker. Warm: both workers hold the model and the clean pass; one worker and two take
turns, so that a machine whose speed drifts cannot favour one; medians. On a busy machine read the
CPU seconds: those of the busier worker are what idle cores would take, less what two workers cost
each other in memory bandwidth.
Cold: one session each, from nothing to the last layer, with Ray's start, loading and the clean
pass; it nears the warm ratio as the work grows. On two cores nothing else should run meanwhile.
"""

import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rolecircuits.inputs import arguments  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

GOAL = 0.6


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    arguments.add_model_arguments(parser)
    parser.add_argument(
        "--layers",
        type=arguments.positive_int,
        default=6,
        help="layers swept in a turn, evenly spaced (6)",
    )
    parser.add_argument(
        "--repeats", type=arguments.positive_int, default=5, help="turns of each (5)"
    )
    return parser.parse_args(argv)


def run(args):
    arguments.check_model_arguments(args)
    from prompts import load_prompts
    from rolecircuits.edits import sweep
    from rolecircuits.engines.open import check_engine_arguments, open_engine
    from rolecircuits.engines.work import Item
    from rolecircuits.inputs.specs import Setting

    flags = {
        "engine": "ray",
        "ray_address": None,
        "worker_threads": 1,
        "gpus_per_worker": None,
        "device": "cpu",
    }
    check_engine_arguments(Namespace(**flags, num_workers=2))
    prompts, _ = load_prompts(args.prompts, args.prompts_per_category)
    payload = sweep.sweep_payload(Setting.of(args), prompts, "zero_out")
    cold, warm, cpu = {}, {1: [], 2: []}, {1: [], 2: []}
    for n in (1, 2):
        started = time.perf_counter()
        with open_engine(Namespace(**flags, num_workers=n)) as engine:
            base = engine.prepare(Item("clean pass", sweep.clean_task, payload))
            items = layer_items(payload, base["facts"]["n_layers"], args.layers)
            list(engine.run(items))
            cold[n] = time.perf_counter() - started
            print(f"{n} worker{'s' * (n > 1)}, cold: {cold[n]:.1f} s", flush=True)
            while len(engine.idle) < n:
                list(engine.run(items[:1]))
            for _ in range(args.repeats if n == 2 else 0):
                for active in (1, 2):
                    engine.idle = engine.workers[:active]
                    before = cpu_seconds(engine)
                    warm[active].append(clock(engine, items))
                    cpu[active].append(
                        max(b - a for a, b in zip(before, cpu_seconds(engine), strict=True))
                    )
                    print(f"{active} of 2 workers, warm: {warm[active][-1]:.2f} s", flush=True)
    one, two = (statistics.median(warm[n]) for n in (1, 2))
    ratios = [b / a for a, b in zip(warm[1], warm[2], strict=True)]
    heads = len(items) * base["facts"]["n_heads"]
    print(
        f"{heads} heads in {len(items)} layers, {len(prompts)} prompts, one thread a worker, "
        f"medians of {args.repeats}"
    )
    print(
        f"warm: one worker {one:.2f} s, two {two:.2f} s, "
        f"median ratio {statistics.median(ratios):.2f} (goal {GOAL})"
    )
    one, two = (statistics.median(cpu[n]) for n in (1, 2))
    print(
        f"warm, CPU of the busier worker: one {one:.2f} s, two {two:.2f} s, ratio {two / one:.2f}"
    )
    print(f"cold: one worker {cold[1]:.1f} s, two {cold[2]:.1f} s, ratio {cold[2] / cold[1]:.2f}")


def layer_items(payload, n_layers, count):
    """The items of `count` evenly spaced layers, costly ones first, as a sweep hands them out."""
    from rolecircuits.edits.sweep import layer_task
    from rolecircuits.engines.work import Item

    count = min(count, n_layers)
    layers = sorted({int((i + 0.5) * n_layers / count) for i in range(count)})
    return [Item(f"layer {layer}", layer_task, payload | {"layer": layer}) for layer in layers]


def cpu_seconds(engine):
    """CPU seconds of both workers since they started."""
    import psutil

    times = [
        psutil.Process(engine.facts_of[worker]["pid"]).cpu_times() for worker in engine.workers
    ]
    return [each.user + each.system for each in times]


def clock(engine, items):
    """Seconds until all items are done."""
    started = time.perf_counter()
    done = list(engine.run(items))
    assert len(done) == len(items)
    return time.perf_counter() - started


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
