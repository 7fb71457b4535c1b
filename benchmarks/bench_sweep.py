"""How much cheaper the all-heads sweep is than one whole forward pass for every head.

    ratio = seconds of the sweep / (heads x seconds of one plain batched forward pass); goal 0.62

    python benchmarks/bench_sweep.py
    python benchmarks/bench_sweep.py --layers 6      six layers, evenly spaced, stand for all

The plain pass runs the same prompts in the same process, in batches of similar length, without
hooks: once with logits for every token (what a plain call does) and once for the final token only
(the stricter yardstick). Medians are compared; the cost is linear in depth. CPU seconds are printed
too: on a shared machine they are the steadier measure.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rolecircuits.inputs import arguments  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import Setting

GOAL = 0.62


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    arguments.add_model_arguments(parser)
    parser.add_argument(
        "--layers",
        type=arguments.positive_int,
        help="sweep only this many evenly spaced layers (default: all)",
    )
    parser.add_argument(
        "--repeats",
        type=arguments.positive_int,
        default=5,
        help="plain passes to take the median of",
    )
    parser.add_argument("--rows", type=arguments.positive_int, help="ablations in one batch")
    return parser.parse_args(argv)


def run(args):
    arguments.check_model_arguments(args)
    import numpy as np  # here and below: torch, after the arguments are checked

    from prompts import load_prompts
    from rolecircuits.capture.instrument import load_model
    from rolecircuits.capture.tokens import tokenize_prompts
    from rolecircuits.edits.sweep import Sweep

    setting = Setting.of(args)
    loaded = load_model(setting.model, setting.seed)
    prompts, _ = load_prompts(args.prompts, args.prompts_per_category)
    tokenized = tokenize_prompts(prompts, loaded.tokenizer, setting.form)
    n_layers = loaded.n_layers
    count = min(args.layers or n_layers, n_layers)
    layers = sorted({int(i) for i in (np.arange(count) + 0.5) * n_layers / count})
    plain = {"all logits": [], "final logits": []}
    sweep, timed = Sweep(loaded, tokenized, "zero_out", args.batch_size, args.rows), []
    plain_pass(loaded, tokenized, args.batch_size, 1)
    every = max(1, len(layers) // args.repeats)
    for i, layer in enumerate(layers):
        if i % every == 0:
            plain["all logits"].append(clock(plain_pass, loaded, tokenized, args.batch_size, 0))
            plain["final logits"].append(clock(plain_pass, loaded, tokenized, args.batch_size, 1))
        timed.append(clock(sweep.layer, layer))
        print(f"layer {layer}: {timed[-1][0]:.2f} s, {timed[-1][1]:.2f} CPU s", flush=True)
    for j, unit in enumerate(("s", "CPU s")):
        whole = sum(t[j] for t in timed) * n_layers / len(layers)
        for name, runs in plain.items():
            one = statistics.median(t[j] for t in runs)
            n_heads = n_layers * loaded.n_heads
            print(
                f"{unit}: sweep of {n_heads} heads {whole:.1f}, plain pass ({name}) {one:.2f}, "
                f"ratio {whole / (n_heads * one):.3f} (goal {GOAL})"
            )


def clock(function, *arguments):
    """(seconds, CPU seconds) of one call."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - start, time.process_time() - cpu


def plain_pass(loaded, tokenized, batch_size, keep):
    """One pass over all prompts without hooks; logits of every token (keep 0) or the last (1)."""
    import torch

    from rolecircuits.capture.batches import make_batches, pad_right

    for batch in make_batches([len(p.token_ids) for p in tokenized], batch_size):
        ids, mask = pad_right([tokenized[i].token_ids for i in batch])
        with torch.inference_mode():
            loaded.bridge(ids, attention_mask=mask, logits_to_keep=keep)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
