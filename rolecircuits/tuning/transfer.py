"""Does a probe for the person, trained in one model of a pair, name it in the other?

    base, instruct             trained and asked in the same model
    base -> instruct, and back trained in one, asked in the other, as it is
    centred                    the same after the asked model's mean over all prompts is moved to
                               that of the other: whether the direction is shared where the place
                               is not. Needs no labels: every frame holds every person

In all of them frames are held out: the probe is asked about sentences that it has not seen in
either model, and inside a frame only the person differs (probes.py). The same sentences asked in
the other model would share what is special about each of them, and transfer that too.

    estimate  share of held-out prompts whose person is named, mean over frames; interval and tests
              by bootstrap-t over frames        null  1 / persons, the share of each of them

Axes: prompt, layer, unit.
"""

from dataclasses import dataclass

import numpy as np

from rolecircuits.capture import feeding, frames, instrument
from rolecircuits.capture.tokens import tokenize_all
from rolecircuits.drawing.tables import interval, print_table, right, show, with_interval
from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.resampling import MIN_UNITS, infer_mean
from rolecircuits.tuning.probes import transfer_layers
from rolecircuits.tuning.residuals import read_residuals

SIDES = ("base", "instruct")
ENDS = ("estimate", "low", "high")
ROUNDING = 1e-12
WAYS = (  # trained, asked, centred
    ("base", "base", False),
    ("instruct", "instruct", False),
    ("base", "instruct", False),
    ("instruct", "base", False),
    ("base", "instruct", True),
    ("instruct", "base", True),
)


@dataclass
class SideResiduals:
    """What was read of one model of the pair.

    values  [prompt, layer, unit] float32 at the final query    tokenized  TokenizedPrompts of it
    facts   of the model    left_out  {frame: why this tokenizer does not match it}
    notes   of feeding
    """

    values: np.ndarray
    tokenized: list
    facts: dict
    left_out: dict
    notes: list

    def take(self, rows):
        """Values, persons and frames of some rows."""
        labels, names = (
            np.array([getattr(self.tokenized[i], field) for i in rows])
            for field in ("category", "frame")
        )
        return self.values[rows], labels, names


def read_side(spec, prompts, form, batch_size, seed=DEFAULT_SEED):
    """The SideResiduals of the model of a ModelSpec; it is loaded here, and free afterwards."""

    def check(tokenizer):
        tokenize_all(prompts, tokenizer, form)

    loaded = instrument.load_model(spec, seed, check)
    tokenized, left_out = frames.keep_matched(tokenize_all(prompts, loaded.tokenizer, form))
    how_fed = feeding.describe_feeding(tokenized, loaded.tokenizer, form)
    values = read_residuals(loaded, tokenized, batch_size).final
    return SideResiduals(values, tokenized, loaded.facts, left_out, how_fed["notes"])


def match_sides(base, instruct):
    """(values of base, values of instruct, persons, frames) on the prompts that both hold."""
    shapes = [
        f"{side.values.shape[1]} layers of {side.values.shape[2]}" for side in (base, instruct)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"--instruct_id {instruct.facts['id']}: has {shapes[1]} units, base has {shapes[0]}; a "
            "probe is asked in a model of the same size"
        )
    places = {prompt.id: i for i, prompt in enumerate(instruct.tokenized)}
    rows = [i for i, prompt in enumerate(base.tokenized) if prompt.id in places]
    if not rows:
        raise UserError("no frame is matched under both tokenizers; nothing can be compared")
    own, labels, names = base.take(rows)
    return own, instruct.take([places[base.tokenized[i].id] for i in rows])[0], labels, names


def probe_pair(base, instruct, labels, names):
    """{(trained, asked, centred): Probed} of the values [prompt, layer, unit] of both models."""
    values, found = dict(zip(SIDES, (base, instruct), strict=True)), {}
    for trained, other in (SIDES, SIDES[::-1]):
        own, theirs = values[trained], values[other]
        moved = theirs - theirs.mean(axis=0) + own.mean(axis=0)
        ways = [(trained, trained, False), (trained, other, False), (trained, other, True)]
        probed = transfer_layers(own, [own, theirs, moved], labels, names)
        found |= dict(zip(ways, probed, strict=True))
    return {way: found[way] for way in WAYS}


def list_transfer(probed, seed=DEFAULT_SEED):
    """Rows of probe_transfer.csv, one a way and layer, and a summary of each way: (rows, summary).

    All layers of a way are one family.
    """
    rows, summary = [], []
    for way, one in probed.items():
        place = dict(zip(("trained", "asked", "centred"), way, strict=True))
        correct = by_frame(one.correct, one.frames)
        layers = infer_accuracy(correct, one.chance, seed)
        whole = infer_accuracy(np.nanmean(correct, axis=1, keepdims=True), one.chance, seed)
        for layer, nats in enumerate(one.nats_profile):
            row = place | {"layer": layer, "null": one.chance, "frames": len(correct)}
            row |= {name: float(values[layer]) for name, values in layers.items()}
            rows.append(row | {"nats": float(nats)})
        best = int(np.nanargmax(layers["estimate"]))
        row = place | {name: float(whole[name][0]) for name in ENDS} | {"null": one.chance}
        row |= {"best": float(layers["estimate"][best]), "best_layer": best}
        above = (layers["p_max"] < ALPHA) & (layers["estimate"] > one.chance)
        row |= {"above": int(above.sum()), "layers": len(above)}
        summary.append(row | {"nats": float(np.nanmean(one.nats))})
    return rows, summary


def infer_accuracy(correct, chance, seed):
    """{"estimate", "low", "high", "p", "q", "p_max": [layer]} of accuracies [frame, layer].

    Where all frames have the same accuracy (every prompt named, say) there is no spread to
    studentise by. Then there is no interval, p is that of the signs, 2^(1 - frames), and p_max that
    times the layers. Where a way has layers of both kinds, every p_max is doubled: two families.
    """
    excess, bounds = correct - chance, (-chance, 1 - chance)
    n, n_layers = excess.shape
    varies = np.ptp(excess, axis=0) > ROUNDING
    mean = excess.mean(axis=0)
    out = {name: np.full(n_layers, np.nan) for name in ENDS} | {"estimate": mean + chance}
    p = np.where(np.abs(mean) > ROUNDING, 2.0 ** (1 - n), 1.0) if n >= MIN_UNITS else mean * np.nan
    out |= {"p": np.array(p), "p_max": np.minimum(1.0, p * n_layers)}
    if varies.any():
        found = infer_mean(excess[:, varies], bounds=bounds, seed=seed)
        for name in ENDS:
            out[name][varies] = getattr(found, name) + chance
        for name in ("p", "p_max"):
            out[name][varies] = getattr(found, name)
        if not varies.all():
            out["p_max"] = np.minimum(1.0, 2 * out["p_max"])
    return out | {"q": q_values(out["p"])}


def by_frame(values, names):
    """Means over the prompts of every frame: [prompt, layer] -> [frame, layer]."""
    return np.array([values[names == name].mean(axis=0) for name in dict.fromkeys(names)])


def print_transfer(summary, n_frames):
    """The summary of every way as a table."""
    columns = ["trained", "asked", interval("named [95 %]"), right("null"), right("nats")]
    columns += [right("best @layer"), right("above null\n(max-T)"), right("of")]
    cells = []
    for row in summary:
        asked = f"{row['asked']}, centred" if row["centred"] else row["asked"]
        named = with_interval(row["estimate"], row["low"], row["high"], ".2f")
        best = f"{row['best']:.2f} @{row['best_layer']}"
        cells.append(
            [row["trained"], asked, named, f"{row['null']:.2f}", show(row["nats"], "+.2f")]
        )
        cells[-1] += [best, row["above"], row["layers"]]
    title = "share of held-out prompts whose person a linear probe names at the final query, mean "
    print_table(columns, cells, f"{title}over layers; {n_frames} frames, each held out once")
