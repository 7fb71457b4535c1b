"""What capture costs: the 120 prompts captured, against a plain forward pass of the same prompts.

    plain     Hugging Face with SDPA, all prompts in one right-padded batch, nothing captured
    capture   every pattern of every layer checked and reduced to arrays (capture_patterns)

Both in this process, in turn, so that a machine whose speed drifts cannot favour one. Prints
medians and their ratio.

    python benchmarks/bench_capture.py --rounds 7
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rolecircuits  # noqa: E402, F401, I001  (before numpy and torch: it sets how threads wait)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from prompts import select_prompts  # noqa: E402
from rolecircuits.capture.attention import capture_patterns  # noqa: E402
from rolecircuits.capture.batches import pad_right  # noqa: E402
from rolecircuits.capture.instrument import load_model  # noqa: E402
from rolecircuits.capture.tokens import tokenize_prompts  # noqa: E402
from rolecircuits.inputs.arguments import DEFAULT_MODEL, positive_int  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.inputs.specs import ModelSpec, PromptFormat  # noqa: E402
from rolecircuits.models.source import locate_model  # noqa: E402


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model_id", default=DEFAULT_MODEL)
    parser.add_argument("--prompt_format", choices=["raw", "chat"], default="raw")
    parser.add_argument("--rounds", type=positive_int, default=7)
    return parser.parse_args(argv)


def run(args):
    loaded = load_model(ModelSpec(args.model_id, device="cpu"))
    plain_model = AutoModelForCausalLM.from_pretrained(
        locate_model(args.model_id), attn_implementation="sdpa"
    ).eval()
    tokenized = tokenize_prompts(
        select_prompts(), loaded.tokenizer, PromptFormat(args.prompt_format)
    )
    ids, mask = pad_right([p.token_ids for p in tokenized])

    def plain():
        with torch.inference_mode():
            plain_model(ids, attention_mask=mask)

    def capture():
        capture_patterns(loaded, tokenized)

    seconds = {"plain": [], "capture": []}
    for turn in range(args.rounds + 1):
        for name, work in (("plain", plain), ("capture", capture)):
            started = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    ratios = [c / p for c, p in zip(seconds["capture"], seconds["plain"], strict=True)]
    print(
        f"{len(tokenized)} {args.prompt_format} prompts, {ids.shape[1]} tokens at most, "
        f"{torch.get_num_threads()} threads"
    )
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:8} {middle:6.2f} s   (min {min(values):.2f}, max {max(values):.2f})")
    print(f"capture / plain, median of {args.rounds} pairs: {statistics.median(ratios):.2f}")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
