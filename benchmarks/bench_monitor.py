"""What a RoleMonitor costs: seconds of generation with it and without it, in turn, in one process.

    python benchmarks/bench_monitor.py --tokens 128 --runs 9

Prints the median of the paired ratios and their range, by the clock and by processor time (which
says more on a machine that others use), whether all tokens are the same, and the bytes that are
held a token. SDPA, greedy, one text; the order within a pair alternates.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rolecircuits  # noqa: E402, F401, I001  (before numpy and torch: it sets how threads wait)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from rolecircuits.inputs.arguments import positive_int  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.models.source import bundled_folder  # noqa: E402
from rolecircuits.monitor import RoleMonitor  # noqa: E402

MESSAGES = [
    {"role": "system", "content": "You are the keeper of a lighthouse. Stay with that."},
    {"role": "user", "content": "Who are you, and what have you seen on the sea this winter?"},
]


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--tokens", type=positive_int, default=128, help="generated a run")
    parser.add_argument("--runs", type=positive_int, default=9, help="pairs")
    parser.add_argument("--attention", default="sdpa", help="sdpa or eager")
    parser.add_argument(
        "--prompt_repeats", type=positive_int, default=1, help="the user's text so often"
    )
    return parser.parse_args(argv)


def run(args):
    folder = bundled_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=args.attention, dtype=torch.float32
    ).eval()
    said = MESSAGES[1]["content"] + " "
    messages = [MESSAGES[0], MESSAGES[1] | {"content": (said * args.prompt_repeats).strip()}]
    fed = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    n = args.tokens
    how = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n}

    def plain():
        return model.generate(**fed, **how)

    def monitored():
        monitor = RoleMonitor(model, tokenizer)
        with monitor:
            out = model.generate(**fed, **how)
        return out, monitor

    plain(), monitored()  # both are warm
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    ratios, same, times = {name: [] for name in clocks}, True, {plain: [], monitored: []}
    for pair in range(args.runs):
        took, gave = {}, {}
        for work in (plain, monitored) if pair % 2 else (monitored, plain):
            started = {name: clock() for name, clock in clocks.items()}
            gave[work] = work()
            took[work] = {name: clock() - started[name] for name, clock in clocks.items()}
            times[work].append(took[work]["wall"])
        for name in clocks:
            ratios[name].append(took[monitored][name] / took[plain][name])
        same &= torch.equal(gave[plain], gave[monitored][0])
    (text,) = gave[monitored][1].texts
    per_token = text.rows.nbytes / len(text.token_ids)
    layers, heads = text.rows.shape[:2]
    print(
        f"{args.attention}, {fed['input_ids'].shape[1]} tokens fed, {n} generated, {args.runs} "
        f"pairs, {torch.get_num_threads()} threads: without "
        f"{statistics.median(times[plain]):.3f} s, with {statistics.median(times[monitored]):.3f} s"
    )
    fastest = min(times[monitored]) / min(times[plain])
    print(f"ratio of the fastest runs {fastest:.3f}")
    for name, own in ratios.items():
        print(f"{name} ratio {statistics.median(own):.3f} ({min(own):.3f} to {max(own):.3f})")
    print(
        f"tokens {'identical' if same else 'DIFFERENT'}; held {per_token / layers / heads:.0f} "
        "bytes a token, layer and head"
    )


if __name__ == "__main__":
    sys.exit(run_script(parse_args, run))
