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
from rolecircuits.stats.resampling import infer_mean
from rolecircuits.tuning.probes import transfer_layers
from rolecircuits.tuning.residuals import read_residuals

SIDES = ("base", "instruct")
ENDS = ("estimate", "low", "high")
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
    for (trained, asked, centred), one in probed.items():
        correct = by_frame(one.correct, one.frames) - one.chance
        bounds = (-one.chance, 1 - one.chance)
        found = infer_mean(correct, bounds=bounds, seed=seed)
        whole = infer_mean(np.nanmean(correct, axis=1), bounds=bounds, seed=seed)
        q, place = q_values(found.p), {"trained": trained, "asked": asked, "centred": centred}
        for layer in range(correct.shape[1]):
            row = place | {"layer": layer, "null": one.chance, "frames": len(correct)}
            ends = {name: getattr(found, name)[layer] + one.chance for name in ENDS}
            tests = {"p": found.p[layer], "q": q[layer], "p_max": found.p_max[layer]}
            rows.append(row | ends | tests | {"nats": one.nats_profile[layer]})
        best = int(np.nanargmax(one.accuracy_profile))
        ends = {name: float(getattr(whole, name)) + one.chance for name in ENDS}
        above = int(((found.p_max < ALPHA) & (found.estimate > 0)).sum())
        summary.append(
            place
            | ends
            | {"null": one.chance, "best": one.accuracy_profile[best], "best_layer": best}
            | {"above": above, "layers": correct.shape[1], "nats": float(np.nanmean(one.nats))}
        )
    return rows, summary


def by_frame(values, names):
    """Means over the prompts of every frame: [prompt, layer] -> [frame, layer]."""
    return np.array([values[names == name].mean(axis=0) for name in dict.fromkeys(names)])


def print_transfer(summary, n_frames):
    """The summary of every way as a table."""
    columns = ["trained", "asked", interval("named [95 %]"), right("null"), right("nats")]
    columns += [right("best @layer"), right("layers above\nnull (max-T)"), right("of")]
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
