"""Time and peak memory of exact entropies on long contexts, beside a plain pass and other tools.

    plain       Hugging Face, SDPA, base model without logits, nothing captured: the yardstick
    streaming   entropies, sink mass and final-query masses of every row, without patterns
    hf_eager    Hugging Face, eager, output_attentions=True, entropies from the patterns it returns
    tl_hooks    TransformerLens run_with_hooks, every pattern reduced to entropies inside its hook
    tl_cache    TransformerLens run_with_cache of all patterns, then entropies

Every measurement is a process of its own, so that peak memory is its own: the highest resident
memory during the passes less the resident memory before the first one (the model is loaded by
then). Time is the median of --repeats passes after one that warms up (a single pass is not warmed
up); on a shared machine processor seconds are the steadier measure. With --device cuda peak memory
is torch.cuda's. What would not fit the free memory, or has more than --max_tokens tokens where
patterns are built, is skipped and said.

--pairs N compares the time of plain and streaming alone, in one process and in turn, which a
drifting machine cannot favour.

    python benchmarks/bench_long_context.py
    python benchmarks/bench_long_context.py --tokens 4096 --ways plain streaming --repeats 5
    python benchmarks/bench_long_context.py --tokens 4096 --pairs 9
    python benchmarks/bench_long_context.py --device cuda --model_id mistral-7b-shape
                                                          random weights, bfloat16
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rolecircuits  # noqa: E402, F401, I001  (before numpy and torch: it sets how threads wait)

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import AutoModelForCausalLM, MistralConfig  # noqa: E402

from rolecircuits.capture.instrument import load_model  # noqa: E402
from rolecircuits.capture.masks import note_windows, windows_of  # noqa: E402
from rolecircuits.capture.recorder import LayerRecorder, stream_layers  # noqa: E402
from rolecircuits.inputs.arguments import DEFAULT_MODEL, positive_int  # noqa: E402
from rolecircuits.inputs.errors import RunFailed  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.inputs.specs import ModelSpec  # noqa: E402
from rolecircuits.stats.masses import Places  # noqa: E402
from rolecircuits.models.load import LoadedModel  # noqa: E402
from rolecircuits.models.source import locate_model, read_config  # noqa: E402

WAYS = ("plain", "streaming", "hf_eager", "tl_hooks", "tl_cache")
RANDOM_SHAPE = "mistral-7b-shape"
# copies of a [head, query, key] float32 pattern alive at the peak: (of one layer, of every layer)
ALIVE = {
    "plain": (0, 0),
    "streaming": (0, 0),
    "hf_eager": (3, 1),
    "tl_hooks": (6, 0),
    "tl_cache": (3, 1),
}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model_id", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--tokens", type=positive_int, nargs="+", default=[512, 1024, 2048, 4096, 8192]
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--max_tokens",
        type=positive_int,
        default=4096,
        help="the most tokens for what builds patterns",
    )
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument(
        "--pairs",
        type=positive_int,
        help="time plain and streaming in turn, this often, in one process",
    )
    parser.add_argument(
        "--measure",
        choices=WAYS,
        help="measure one way in this process and print JSON (used inside)",
    )
    return parser.parse_args(argv)


def run(args):
    if args.measure:
        print(json.dumps(measure(args, args.measure, args.tokens[0])))
        return
    if args.pairs:
        for tokens in args.tokens:
            print_pairs(args, tokens)
        return
    rows = []
    for tokens in args.tokens:
        for way in args.ways:
            rows.append(one_row(args, way, tokens))
            print(f"{tokens:6} {way:10} {rows[-1]['note'] or describe(rows[-1])}", flush=True)
    print_table(rows)


def print_pairs(args, tokens):
    """Wall and processor time of streaming / plain: the median over pairs, and least / least."""
    works = [make_work(args, way, tokens) for way in ("plain", "streaming")]
    with torch.inference_mode():
        for work in works:
            timed(args, work)  # warms up
        times = np.array([[timed(args, work) for work in works] for _ in range(args.pairs)])
    for name, (plain, streaming) in zip(("wall", "CPU"), times.transpose(2, 1, 0), strict=True):
        ratios = streaming / plain
        print(
            f"{tokens:6} tokens, {args.pairs} pairs, {name:4}: plain {np.median(plain):.2f} s, "
            f"streaming {np.median(streaming):.2f} s, ratio {np.median(ratios):.3f} "
            f"({ratios.min():.2f} to {ratios.max():.2f}), "
            f"least / least {streaming.min() / plain.min():.3f}",
            flush=True,
        )


def timed(args, work):
    """(wall seconds, processor seconds) of one pass."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - started_cpu


def describe(row):
    return f"{row['seconds']:.2f} s, peak {row['mib']:.0f} MiB above the model"


def one_row(args, way, tokens):
    """The measurement of one way at one length, in a process of its own; `note` says why not."""
    row = {"tokens": tokens, "way": way, "note": "", "seconds": None, "cpu": None, "mib": None}
    if sum(ALIVE[way]) and tokens > args.max_tokens:
        return row | {"note": f"skipped: more than --max_tokens {args.max_tokens}"}
    if args.model_id == RANDOM_SHAPE and way.startswith("tl_"):
        return row | {"note": "skipped: not booted from random weights"}
    needed, free = needed_gib(args, way, tokens), free_gib(args.device)
    if needed > 0.9 * free:
        return row | {"note": f"skipped: needs about {needed:.0f} GiB, {free:.0f} GiB are free"}
    flags = ["--model_id", args.model_id, "--device", args.device, "--repeats", str(args.repeats)]
    command = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return row | {"note": f"failed (exit {done.returncode}): {last[:160]}"}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def needed_gib(args, way, tokens):
    """A first guess of the peak above the model: the patterns that are alive at once."""
    layers, heads = shape_of(args.model_id)
    one, every = ALIVE[way]
    return (one + every * layers) * heads * tokens**2 * 4 / 2**30


def shape_of(model_id):
    """(layers, heads) from the config alone."""
    if model_id == RANDOM_SHAPE:
        return 32, 32

    config = read_config(locate_model(model_id)).get_text_config()
    return config.num_hidden_layers, config.num_attention_heads


def free_gib(device):
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] / 2**30

    return psutil.virtual_memory().available / 2**30


def measure(args, way, tokens):
    """{"seconds", "cpu", "mib"} of one way: median times, peak memory above the model."""
    work = make_work(args, way, tokens)
    seconds, cpu = [], []
    with PeakMemory(args.device) as peak, torch.inference_mode():
        if args.repeats > 1:
            timed(args, work)  # warms up
        for _ in range(args.repeats):
            wall, busy = timed(args, work)
            seconds.append(wall)
            cpu.append(busy)
    return {"seconds": statistics.median(seconds), "cpu": statistics.median(cpu), "mib": peak.mib}


class PeakMemory:
    """Peak memory while the block runs, above what there was when it began; `mib` afterwards.

    Resident memory is sampled every 5 ms: the kernel's own high-water mark also counts what loading
    the model needed.
    """

    def __init__(self, device):
        self.cuda = device.startswith("cuda")

    def __enter__(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self

        self.process, self.stop = psutil.Process(), threading.Event()
        self.before = self.highest = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self):
        while not self.stop.wait(0.005):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *error):
        if self.cuda:
            self.highest = torch.cuda.max_memory_allocated()
        else:
            self.stop.set()
            self.thread.join()
        self.mib = (self.highest - self.before) / 2**20


def load_plain(args, attention):
    """The Hugging Face model alone, with the named attention."""
    if args.model_id == RANDOM_SHAPE:
        torch.manual_seed(0)
        with torch.device(args.device):
            config = MistralConfig(sliding_window=None, attn_implementation=attention)
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    model = AutoModelForCausalLM.from_pretrained(
        locate_model(args.model_id), attn_implementation=attention
    )
    return model.eval().to(args.device)


def make_work(args, way, tokens):
    """A function without arguments that does one pass over `tokens` random tokens."""
    if way.startswith("tl_"):
        loaded = load_model(ModelSpec(args.model_id, device=args.device))
        read_weights(loaded.model)
        ids = random_ids(loaded.model.config, tokens)
        return hooks_work(loaded, ids) if way == "tl_hooks" else cache_work(loaded, ids)
    model = load_plain(args, "eager" if way == "hf_eager" else "sdpa")
    read_weights(model)
    ids = random_ids(model.config, tokens)
    mask, span, count = torch.ones_like(ids), np.array([[1, tokens]]), np.array([tokens])
    if way == "streaming":
        config = model.config.get_text_config()
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        facts = {"id": args.model_id, "architecture": type(model).__name__}
        facts |= {"n_heads": heads, "n_layers": layers}
        loaded = LoadedModel(model, None, facts)
        note_windows(loaded, tokens)
        kept = windows_of(facts), count, Places(span), lambda layer, arrays: None
        return lambda: stream_layers(loaded, (ids, mask), LayerRecorder(*kept))
    ids, mask = ids.to(args.device), mask.to(args.device)
    if way == "plain":
        return lambda: model.base_model(ids, attention_mask=mask, use_cache=False)
    return lambda: [
        entropy_of(a)
        for a in model.base_model(
            ids, attention_mask=mask, use_cache=False, output_attentions=True
        ).attentions
    ]


def read_weights(model):
    """Touch every weight: a mapped file becomes resident when it is first read, which would count
    as the pass's memory.
    """
    for parameter in model.parameters():
        parameter.sum()


def random_ids(config, tokens):
    return torch.randint(
        3,
        config.get_text_config().vocab_size,
        (1, tokens),
        generator=torch.Generator().manual_seed(0),
    )


def entropy_of(pattern):
    """Row entropies of a pattern the way users write it: two temporaries of the pattern's size."""
    return pattern.float().xlogy(pattern.float()).sum(dim=-1).neg()


def hooks_work(loaded, ids):
    def reduce(pattern, hook):
        entropy_of(pattern)

    hooks = [(f"blocks.{layer}.attn.hook_pattern", reduce) for layer in range(loaded.n_layers)]
    return lambda: loaded.bridge.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=1)


def cache_work(loaded, ids):
    def work():
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(loaded.n_layers)]
        _, cache = loaded.bridge.run_with_cache(ids, names_filter=names, logits_to_keep=1)
        return [entropy_of(cache[name]) for name in names]

    return work


def print_table(rows):
    """Every way as multiples of the plain pass at the same length."""
    plain = {row["tokens"]: row for row in rows if row["way"] == "plain" and row["seconds"]}
    if not plain:
        raise RunFailed("no plain pass was measured, so there is nothing to compare with")
    table = Table(
        "tokens",
        "way",
        "s",
        "/ plain",
        "CPU s",
        "/ plain",
        "peak MiB",
        "/ plain",
        title="long context: time and peak memory",
    )
    for row in rows:
        base = plain.get(row["tokens"])
        if row["note"] or base is None:
            table.add_row(str(row["tokens"]), row["way"], row["note"].split(":")[0], *[""] * 5)
            continue
        cells = []
        for name, digits in (("seconds", 2), ("cpu", 2), ("mib", 0)):
            cells += [f"{row[name]:.{digits}f}", f"{row[name] / base[name]:.2f}"]
        table.add_row(str(row["tokens"]), row["way"], *cells)
    Console(markup=False, highlight=False, width=100).print(table)
    grown = {row["tokens"]: row["mib"] for row in rows if row["way"] == "streaming" and row["mib"]}
    if {2048, 8192} <= set(grown):
        print(f"streaming memory, 8192 / 2048 tokens: {grown[8192] / grown[2048]:.2f}")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
