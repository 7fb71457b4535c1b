"""How much memory a study takes, from a model's shape alone: the tables of docs/SCALE.md.

    python benchmarks/scale.py
    python benchmarks/scale.py --tokens 4096

L layers, H query heads, K key heads, h width of a head, d width, f width of the MLP, V vocabulary
(input and output embeddings untied); N prompts of T tokens, batches of B. GB = 1e9 bytes.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rolecircuits.inputs.arguments import positive_int  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.stats.masses import SEGMENTS

GPU_GB, USED = (80, 141), 0.9
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: gated MLP, RMS norms, no biases."""

    name: str
    L: int
    H: int
    K: int
    h: int
    d: int
    f: int
    V: int


SHAPES = (
    Shape("8B", 32, 32, 8, 128, 4096, 14336, 128256),
    Shape("70B", 80, 64, 8, 128, 8192, 28672, 128256),
    Shape("405B", 126, 128, 8, 128, 16384, 53248, 128256),
)


def parameters(s):
    """Embeddings 2Vd, and in each layer q and o 2dHh, k and v 2dKh, the MLP 3df, two norms 2d; a
    last norm d."""
    return (
        2 * s.V * s.d
        + s.L * (2 * s.d * s.H * s.h + 2 * s.d * s.K * s.h + 3 * s.d * s.f + 2 * s.d)
        + s.d
    )


def weights(s):
    """Bytes in bfloat16."""
    return 2 * parameters(s)


def gpus(s, gb):
    """Cards that the weights fill to USED of their memory; the rest is for activations."""
    return math.ceil(weights(s) / (USED * gb * GB))


def activations(s, B, T):
    """Bytes of one layer at work: residual and two MLP products 2B T(d + 2f), scores 2BHT^2 and
    float32 softmax 4BHT^2."""
    return 2 * B * T * (s.d + 2 * s.f) + 6 * B * s.H * T**2


def arrays(s, T):
    """Bytes of attention.npz a prompt, uncompressed, in float32 unless said: three row arrays and
    the final row (float16) 14LHT; five masses of a head and those of six segments 44LH; uniform
    attention on slot and segments 28L."""
    of_head = 4 * (5 + len(SEGMENTS))
    return (12 + 2) * s.L * s.H * T + of_head * s.L * s.H + 4 * (1 + len(SEGMENTS)) * s.L


def patterns(s, T):
    """Bytes of the raw patterns a prompt: 4LHT^2."""
    return 4 * s.L * s.H * T**2


def residuals(s, N, T):
    """Bytes of the clean residuals that a sweep keeps, in bfloat16: 2LNTd."""
    return 2 * s.L * N * T * s.d


def distributions(s, N):
    """Bytes of the unedited next-token distributions, float32 logits and float64 probabilities:
    12NV."""
    return 12 * N * s.V


def model_rows():
    """Table 1: name, parameters, weights and cards."""
    return [
        f"| {s.name} | {parameters(s) / 1e9:.2f} | {weights(s) / GB:.0f} | "
        + " | ".join(str(gpus(s, gb)) for gb in GPU_GB)
        + " |"
        for s in SHAPES
    ]


def prompt_rows(T, N=120, B=64):
    """Table 2: memory of N prompts of T tokens, in GB."""
    rows = []
    for s in SHAPES:
        values = (
            activations(s, B, T),
            N * arrays(s, T),
            N * patterns(s, T),
            residuals(s, N, T),
            distributions(s, N),
        )
        rows.append(
            f"| {s.name} | {T} | " + " | ".join(f"{value / GB:.3g}" for value in values) + " |"
        )
    return rows


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--tokens", type=positive_int, default=8, help="tokens a prompt (default 8)"
    )
    parser.add_argument("--prompts", type=positive_int, default=120)
    parser.add_argument("--batch_size", type=positive_int, default=64)
    return parser.parse_args(argv)


def run(args):
    print(
        "| model | parameters, 1e9 | weights, GB | cards of 80 GB | cards of 141 GB |",
        *model_rows(),
        sep="\n",
    )
    print(
        "\n| model | T | activations | attention.npz | raw patterns | residuals of a sweep "
        "| distributions |"
    )
    print(*prompt_rows(args.tokens, args.prompts, args.batch_size), sep="\n")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
