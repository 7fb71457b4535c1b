"""How much memory a study takes, from a model's shape alone: the tables of docs/SCALE.md, and the
memory and time of the families in model_families.json.

    python benchmarks/scale.py
    python benchmarks/scale.py --tokens 4096
    python benchmarks/scale.py --families

L layers, H query heads, K key heads, h width of a head, d width, f width of the MLP, V vocabulary;
N prompts of T tokens, batches of B. GB = 1e9 bytes.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rolecircuits.inputs.arguments import positive_int  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.models.families import FAMILIES_FILE, load_families
from rolecircuits.stats.masses import SEGMENTS

GPU_GB, USED = (80, 141), 0.9
GB = 1e9
# Of run_pipeline.py --family as it is without other flags: float32, batches of 64, on the CPU.
ITEM, BATCH = 4, 64
RAW_TOKENS, CHAT_TOKENS = 8, 40  # of a prompt
PROMPTS = {"original": 120, "crossed": 432}  # where a family takes the whole set
CUT = 3  # heads cut, each beside all others of its layer, on half of the prompts
# Of the bundled model on two cores (docs/SCALE.md): bytes of the libraries, seconds that no model
# changes (start, tests, figures, report), operations a second of short float32 passes.
LIBRARIES, FIXED, SPEED = 1.0 * GB, 45, 80e9


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: RMS norms, no biases.

    tied   one embedding for input and output    gated  an MLP of three matrices, not two
    """

    name: str
    L: int
    H: int
    K: int
    h: int
    d: int
    f: int
    V: int
    tied: bool = False
    gated: bool = True


SHAPES = (
    Shape("8B", 32, 32, 8, 128, 4096, 14336, 128256),
    Shape("70B", 80, 64, 8, 128, 8192, 28672, 128256),
    Shape("405B", 126, 128, 8, 128, 16384, 53248, 128256),
)


def parameters(s):
    """Embeddings 2Vd (tied Vd), the layers, a last norm d."""
    return (1 if s.tied else 2) * s.V * s.d + layers(s) + s.d


def layers(s):
    """Parameters of the layers: q and o 2dHh, k and v 2dKh, the MLP 3df (not gated 2df), two norms
    2d."""
    mlp = (3 if s.gated else 2) * s.d * s.f
    return s.L * (2 * s.d * s.H * s.h + 2 * s.d * s.K * s.h + mlp + 2 * s.d)


def weights(s):
    """Bytes in bfloat16."""
    return 2 * parameters(s)


def gpus(s, gb):
    """Cards that the weights fill to USED of their memory; the rest is for activations."""
    return math.ceil(weights(s) / (USED * gb * GB))


def activations(s, B, T, item=2):
    """Bytes of one layer at work: residual and two MLP products 2B T(d + 2f), scores 2BHT^2 and
    float32 softmax 4BHT^2.

    item  bytes of a number of the pass; 2 in bfloat16
    """
    return item * B * T * (s.d + 2 * s.f) + (item + 4) * B * s.H * T**2


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


def family_cost(s, sets):
    """{"weights_gb", "peak_gb", "minutes"} of a family in run_pipeline.py, as model_families.json
    has them.

    sets     {prompt set: prompts a category, None for all}, of "original" and "crossed"
    weights  in bfloat16
    peak     libraries, float32 weights, one layer at work, the arrays of the larger set in chat
             format, and the distributions of the prompts on which heads are cut
    minutes  FIXED, and 2 operations a parameter of the layers and token: each set once raw and once
             in the chat template, and CUT heads with the others of their layers
    """
    n = {name: 4 * size if size else PROMPTS[name] for name, size in sets.items()}
    held_out = n.get("crossed", max(n.values())) / 2
    bytes_ = LIBRARIES + ITEM * parameters(s) + activations(s, BATCH, CHAT_TOKENS, ITEM)
    bytes_ += max(n.values()) * arrays(s, CHAT_TOKENS) + distributions(s, held_out)
    tokens = sum(n.values()) * (RAW_TOKENS + CHAT_TOKENS) + CUT * s.H * held_out * RAW_TOKENS
    seconds = FIXED + 2 * layers(s) * tokens / SPEED
    return {
        "weights_gb": two_digits(weights(s) / GB),
        "peak_gb": two_digits(bytes_ / GB),
        "minutes": two_digits(seconds / 60),
    }


def two_digits(value):
    """A number with two digits that count."""
    rounded = float(f"{value:.2g}")
    return int(rounded) if rounded >= 10 else rounded


def family_rows(path=FAMILIES_FILE):
    """{name: cost} of the families of a file whose shape is known."""
    return {
        name: family_cost(Shape(name, **family["shape"]), family["prompts"])
        for name, family in load_families(path).items()
        if "shape" in family
    }


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
    families = "print the cost of every family of model_families.json that states its shape"
    parser.add_argument("--families", action="store_true", help=families)
    return parser.parse_args(argv)


def run(args):
    if args.families:
        for name, cost in family_rows().items():
            print(f'{name}: "cost": {json.dumps(cost)}')
        return
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
