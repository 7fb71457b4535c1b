"""What the measurements cost on a GPU, with random weights of Mistral-7B's shape in bfloat16.

    capture    short prompts captured / the plain pass of the same padded batches         goal 1.1
    streaming  a long text streamed / the plain pass, by length; peak memory  goal 1.15 at 32,768
    kernel     one layer's attention: ours, which also gives the entropies, and torch's
    sweep      all heads of a few layers ablated / a plain pass for every head

The plain pass is Hugging Face with SDPA, without logits and with nothing captured. SDPA chooses its
kernel itself ("sdpa"); FlashAttention ("flash") and cuDNN's ("cudnn") are asked for by name.
Times are wall clock with the card synchronised, medians of passes in turn after one that warms up.

    python benchmarks/bench_gpu.py
    python benchmarks/bench_gpu.py --parts capture streaming --tokens 4096 32768
"""

import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rolecircuits  # noqa: E402, F401, I001  (before numpy and torch: it sets how threads wait)

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from transformers import AutoModelForCausalLM, MistralConfig  # noqa: E402

from rolecircuits.capture.attention import capture_streaming, empty_arrays, places_of  # noqa: E402
from rolecircuits.capture.batches import make_batches, pad_right  # noqa: E402
from rolecircuits.capture.masks import ROWS, note_windows, windows_of  # noqa: E402
from rolecircuits.capture.model_pass import set_attention  # noqa: E402
from rolecircuits.capture.recorder import LayerRecorder, stream_layers  # noqa: E402
from rolecircuits.capture.streaming import Scoring, triton_kernel  # noqa: E402
from rolecircuits.capture.tokens import TokenizedPrompt, tokenize_prompts  # noqa: E402
from rolecircuits.edits.sweep import Sweep  # noqa: E402
from rolecircuits.inputs.arguments import DEFAULT_MODEL, positive_int  # noqa: E402
from rolecircuits.inputs.errors import UserError  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts  # noqa: E402
from rolecircuits.inputs.specs import PromptFormat  # noqa: E402
from rolecircuits.models.load import LoadedModel, load_tokenizer  # noqa: E402

CAPTURED = [("original", form, size) for form in ("raw", "chat") for size in (64, 128)]
CAPTURED += [("crossed", form, 256) for form in ("raw", "chat")]
PARTS = ("capture", "streaming", "kernel", "sweep")
SHAPE = {"vocab_size": 49152, "max_position_embeddings": 2**18, "sliding_window": None}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", type=positive_int, nargs="+", default=[4096, 32768, 131072])
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--layers", type=positive_int, default=32, help="layers of the model")
    parser.add_argument("--swept", type=positive_int, default=2, help="layers that are swept")
    parser.add_argument(
        "--prompts_per_category", type=positive_int, help="prompts of capture and sweep (all)"
    )
    return parser.parse_args(argv)


def run(args):
    if not torch.cuda.is_available():
        raise UserError("no CUDA in this machine or torch build: there is nothing to measure")
    properties = torch.cuda.get_device_properties(args.device)
    print(
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}",
        flush=True,
    )
    started = time.perf_counter()
    loaded = random_model(args)
    n = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"random weights: {n / 1e9:.2f} billion, {time.perf_counter() - started:.1f} s")
    work = {
        "capture": bench_capture,
        "streaming": bench_streaming,
        "kernel": bench_kernel,
        "sweep": bench_sweep,
    }
    with torch.inference_mode():
        for part in args.parts:
            work[part](args, loaded)


def random_model(args):
    """A LoadedModel of Mistral-7B's shape, made on the card."""
    torch.manual_seed(0)
    with torch.device(args.device):
        config = MistralConfig(**SHAPE, num_hidden_layers=args.layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    facts = {"id": "mistral-7b-shape", "architecture": type(model).__name__, "dtype": "bfloat16"}
    facts |= {"n_heads": config.num_attention_heads, "n_layers": args.layers, "rotary": None}
    facts |= {"device": args.device, "context": config.max_position_embeddings}
    return LoadedModel(model, load_tokenizer(DEFAULT_MODEL), facts)


def plain_pass(loaded, ids, mask=None, backend="sdpa"):
    """A function without arguments: the plain pass of one batch on the card."""
    device = next(loaded.model.parameters()).device
    ids, mask = ids.to(device), None if mask is None else mask.to(device)

    def work():
        with named(backend):
            loaded.model.base_model(ids, attention_mask=mask, use_cache=False)

    return lambda: (set_attention(loaded.model, "sdpa"), work)[1]


def together(prepares):
    """A function that prepares several works and returns one that does them in turn."""

    def prepare():
        works = [prepare() for prepare in prepares]
        return lambda: [work() for work in works]

    return prepare


def named(backend):
    """A context in which SDPA uses this kernel; "sdpa" leaves the choice to it."""
    return sdpa_kernel(BACKENDS[backend]) if backend in BACKENDS else contextlib.nullcontext()


def clock(works, repeats):
    """{name: (median seconds, peak GiB above what was there)} of works, done in turn.

    works  {name: function without arguments that prepares and returns the work}; one whose kernel
           does not take these tensors is left out and said
    """
    seconds, peaks = {name: [] for name in works}, {}
    for turn in range(repeats + 1):
        for name in [name for name in works if name in seconds]:
            work = works[name]()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, started = torch.cuda.memory_allocated(), time.perf_counter()
            try:
                work()
            except RuntimeError as error:
                print(f"  {name}: not run ({str(error).splitlines()[0][:90]})")
                del seconds[name]
                continue
            torch.cuda.synchronize()
            if turn or repeats == 1:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**30
        if turn == 0 and repeats == 1:
            break
    return {name: (statistics.median(taken), peaks[name]) for name, taken in seconds.items()}


def bench_capture(args, loaded):
    """Short prompts, raw and chat: the rows of all layers against the plain batches."""
    for name, form, size in CAPTURED:
        prompts = cut_prompts(built_in_prompts(name), args.prompts_per_category)
        tokenized = tokenize_prompts(prompts, loaded.tokenizer, PromptFormat(form))
        lengths = [len(prompt.token_ids) for prompt in tokenized]
        batches = [
            plain_pass(loaded, *pad_right([tokenized[i].token_ids for i in batch]))
            for batch in make_batches(lengths, size)
        ]
        note_windows(loaded, max(lengths))

        def capture(tokenized=tokenized, size=size):
            set_attention(loaded.model, ROWS)
            return lambda: capture_streaming(loaded, tokenized, size)

        works = {"plain": together(batches), "capture": capture}
        found = clock(works, 3 * args.repeats)
        (plain, _), (capture, _) = found["plain"], found["capture"]
        print(
            f"capture: {len(tokenized)} {form} prompts of {name}, {max(lengths)} tokens at most, "
            f"batches of {size}: plain {1e3 * plain:.1f} ms, capture {1e3 * capture:.1f} ms, "
            f"ratio {capture / plain:.2f}",
            flush=True,
        )


def bench_streaming(args, loaded):
    """One long text: time and peak memory of the streamed pass and of plain passes."""
    print("tokens   pass        seconds  streaming / it   peak GiB")
    for n_tokens in args.tokens:
        ids = torch.randint(3, 49152, (1, n_tokens), generator=torch.Generator().manual_seed(0))
        works = {name: plain_pass(loaded, ids, None, name) for name in ("sdpa", *BACKENDS)}
        works["streaming"] = streamed(loaded, ids)
        found = clock(works, 1 if n_tokens > 2**16 else args.repeats)
        for name, (seconds, peak) in found.items():
            ratio = found["streaming"][0] / seconds
            print(f"{n_tokens:6}   {name:10} {seconds:8.3f} {ratio:15.3f} {peak:10.2f}", flush=True)


def streamed(loaded, ids):
    """A function that prepares the streamed pass of one text: its arrays are those of a run."""
    row, n_tokens = ids[0].tolist(), ids.shape[1]
    prompt = TokenizedPrompt(
        "p",
        "neutral",
        -1,
        "text",
        "",
        row,
        [],
        (0, n_tokens),
        segments=(0,) + (3,) * (n_tokens - 1),
    )
    note_windows(loaded, n_tokens)
    places, counts = places_of([prompt]), [n_tokens]
    arrays = empty_arrays([prompt], loaded)

    def keep(layers, reduced):
        for name in ("entropy", "entropy_sinkfree", "sink_mass", "final_row"):
            arrays[name][:, layers] = reduced[name].swapaxes(0, 1)

    def work():
        recorder = LayerRecorder(windows_of(loaded.facts), counts, places, keep)
        stream_layers(loaded, (ids, torch.ones_like(ids)), recorder)

    return lambda: work


def bench_kernel(args, loaded):
    """One layer's attention: milliseconds and TFLOP/s, causal products counted once."""
    kernel, how = triton_kernel(), Scoring(128**-0.5)
    for n_tokens in args.tokens:
        query, key, value = (
            torch.randn(1, n_tokens, heads, 128, device=args.device).bfloat16().transpose(1, 2)
            for heads in (32, 8, 8)
        )

        def torch_kernel(name, query=query, key=key, value=value):
            def work():
                with named(name):
                    torch.nn.functional.scaled_dot_product_attention(
                        query, key, value, is_causal=True, enable_gqa=True
                    )

            return lambda: work

        works = {name: torch_kernel(name) for name in BACKENDS}
        works["ours"] = lambda q=query, k=key, v=value: (
            lambda: kernel.rows_and_output(q, k, v, how.scale)
        )
        for name, (seconds, _) in clock(works, 2 * args.repeats).items():
            rate = 2 * 32 * 128 * n_tokens**2 / seconds / 1e12
            print(
                f"kernel: {n_tokens:6} tokens {name:6} {1e3 * seconds:8.3f} ms {rate:6.0f} TFLOP/s",
                flush=True,
            )


def bench_sweep(args, loaded):
    """Every head of a few layers ablated, extrapolated to all, against a plain pass a head."""
    prompts = cut_prompts(built_in_prompts("original"), args.prompts_per_category)
    tokenized = tokenize_prompts(prompts, loaded.tokenizer)
    started = time.perf_counter()
    sweep = Sweep(loaded, tokenized, "zero_out", 64)
    print(f"sweep: {len(tokenized)} prompts, prepared in {time.perf_counter() - started:.1f} s")
    lengths = [len(prompt.token_ids) for prompt in tokenized]
    batches = [
        plain_pass(loaded, *pad_right([tokenized[i].token_ids for i in batch]))
        for batch in make_batches(lengths, 64)
    ]
    plain = clock({"plain": together(batches)}, args.repeats)
    plain = plain["plain"][0]
    step, taken = loaded.n_layers / args.swept, []
    for layer in [int((i + 0.5) * step) for i in range(args.swept)]:
        started = time.perf_counter()
        sweep.layer(layer)
        taken.append(time.perf_counter() - started)
        print(f"sweep: layer {layer} {taken[-1]:.2f} s", flush=True)
    whole = statistics.mean(taken) * loaded.n_layers
    n_heads = loaded.n_layers * loaded.n_heads
    print(
        f"sweep: {n_heads} heads in {whole:.0f} s, plain pass {plain:.3f} s, ratio to a plain pass "
        f"a head {whole / (n_heads * plain):.2f}"
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
