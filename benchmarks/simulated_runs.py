"""Made-up models whose category means are known exactly, shaped like a real one.

    world = draw_world(rng, n_layers=3, n_heads=8)
    values, = simulate(rng, world, n=30, n_data=20)          [prompt, data set, layer, head]
    values, = simulate_frames(rng, world, n=36, n_data=20, rho=0.9)       the same, a crossed set
    true_indices(world, EFFECT)["rfc"]                       [layer], analytic

A value is level * effect * exp(spread * z - spread^2 / 2) * exp(slope * tokens) / E exp(slope *
tokens), z standard normal: its expectation is level * effect whatever spread and lengths are.
"""

from types import SimpleNamespace

import numpy as np

from rolecircuits.inputs.categories import CATEGORIES, PAIRED
from rolecircuits.stats import indices

SPREAD = {"self_referent": 1.0, "confounder": 1.1, "neutral": 1.3, "third_person": 1.1}
EFFECT = {"self_referent": 0.94, "confounder": 0.98, "neutral": 1.0, "third_person": 0.98}
TOKENS = {  # counts of prompts with 4, 5, ... 9 tokens
    "self_referent": (1, 6, 13, 6, 2, 2),
    "confounder": (0, 1, 15, 13, 1, 0),
    "neutral": (1, 5, 16, 6, 2, 0),
    "third_person": (0, 1, 15, 13, 1, 0),
}
FILLERS = 3
SHARED = {"frame": 0.45, "filler": 0.45, "person": 0.1}  # of the log variance between prompts


def draw_world(rng, n_layers, n_heads):
    """Heads of a made-up model: level, log spread, loading and length slope, each [layer, head]."""
    shape = (n_layers, n_heads)
    sink = rng.random(shape) < 0.25
    level = np.where(sink, 10 ** rng.uniform(-3, -1, shape), rng.uniform(0.3, 0.8, shape))
    spread = np.where(
        sink, rng.uniform(0.4, 1.2, shape), np.exp(rng.uniform(np.log(0.05), np.log(0.35), shape))
    )
    return SimpleNamespace(
        level=level,
        spread=spread,
        loading=rng.uniform(-0.8, 0.8, shape),
        slope=rng.normal(0, 0.05, shape),
    )


def labels(n):
    """(category, pair_id) of n prompts a category."""
    category = np.repeat(CATEGORIES, n)
    return category, np.where(np.isin(category, PAIRED), np.tile(np.arange(n), len(CATEGORIES)), -1)


def simulate(rng, world, n, n_data, effects=(EFFECT,)):
    """One array [prompt, data set, layer, head] a run: category c has E = level * effects[run][c].

    Runs share prompts, lengths and half of the randomness; later runs have 0.6 times the level and
    1.5 times the spread.
    """
    factor, own = (
        rng.normal(size=(4 * n, n_data, 1, 1)),
        rng.normal(size=(4 * n, n_data, *world.level.shape)),
    )
    pair = labels(n)[0] == PAIRED[1]
    factor[pair] = 0.7 * factor[labels(n)[0] == PAIRED[0]] + np.sqrt(0.51) * factor[pair]
    own[pair] = 0.7 * own[labels(n)[0] == PAIRED[0]] + np.sqrt(0.51) * own[pair]
    shared = world.loading * factor + np.sqrt(1 - world.loading**2) * own
    lengths = {
        c: rng.choice(np.arange(4, 10), p=np.divide(TOKENS[c], 30), size=(n, n_data, 1, 1))
        for c in CATEGORIES
    }
    runs = []
    for r, effect in enumerate(effects):
        z = shared if r == 0 else 0.7 * shared + np.sqrt(0.51) * rng.normal(size=shared.shape)
        values = np.empty_like(z)
        for c in CATEGORIES:
            chosen, spread = labels(n)[0] == c, world.spread * SPREAD[c] * 1.5**r
            mean_of_length = sum(
                p / 30 * np.exp(world.slope * k)
                for k, p in zip(range(4, 10), TOKENS[c], strict=True)
            )
            grown = (
                np.exp(spread * z[chosen] - spread**2 / 2 + world.slope * lengths[c])
                / mean_of_length
            )
            values[chosen] = world.level * 0.6**r * effect[c] * grown
        runs.append(values)
    return runs


def simulate_frames(rng, world, n, n_data, effects=(EFFECT,), rho=0.9):
    """`simulate` for a crossed set of n frames x FILLERS fillers in each category.

    Prompts go by category, then by frame, then by filler; a later run relates to the first as in
    `simulate`. Frames and fillers move all persons of a cell, each by its own SPREAD; on top of
    them every prompt has a part of its own.
    """

    def draw():
        shapes = ((n_data, 1, 1), (n_data, *world.level.shape))
        factor, own = (_crossed_normal(rng, n, shape, rho) for shape in shapes)
        return world.loading * factor + np.sqrt(1 - world.loading**2) * own

    first, runs = draw(), []
    for r, effect in enumerate(effects):
        z = first if r == 0 else 0.7 * first + np.sqrt(0.51) * draw()
        values = np.empty_like(z)
        for i, c in enumerate(CATEGORIES):
            spread = world.spread * SPREAD[c] * 1.5**r
            values[i] = world.level * 0.6**r * effect[c] * np.exp(spread * z[i] - spread**2 / 2)
        runs.append(values.reshape(-1, *z.shape[3:]))
    return runs


def _crossed_normal(rng, n, shape, rho):
    """Standard normal values [category, frame, filler, *shape].

    The parts of fillers and of prompts correlate by rho inside a frame.
    """

    def nested(n_categories):
        frame, filler = (rng.normal(size=(n_categories, n, k, *shape)) for k in (1, FILLERS))
        return np.sqrt(rho) * frame + np.sqrt(1 - rho) * filler

    parts = {"frame": rng.normal(size=(1, n, 1, *shape)), "filler": nested(1)}
    parts["person"] = nested(len(CATEGORIES))
    return sum(np.sqrt(share) * parts[name] for name, share in SHARED.items())


def true_indices(world, effect, over_heads=True):
    """RFC and RSI of the model itself: of layers, or of every head."""
    means = {c: world.level * np.broadcast_to(effect[c], world.level.shape) for c in CATEGORIES}
    means = {c: m.mean(axis=-1) if over_heads else m for c, m in means.items()}
    return indices.indices_of_means(means.get)
