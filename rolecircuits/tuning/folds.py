"""Frames held out together, and the labels of a frame shuffled: what cross-validation rests on."""

import numpy as np

from rolecircuits.inputs.errors import UserError

FOLDS = 6


def fold_of(frames, n_folds=FOLDS):
    """Fold of every prompt: frames are dealt to folds in turn, as they first appear: [prompt] int.

    frames  [prompt] str
    """
    names = list(dict.fromkeys(frames))
    if len(names) < 2 or "" in names:
        raise UserError(
            f"probes leave frames out: they need a crossed set with at least 2 frames, not "
            f"{len(names) - ('' in names)}"
        )
    place = {name: i % min(n_folds, len(names)) for i, name in enumerate(names)}
    return np.array([place[frame] for frame in frames])


def permute_within(labels, frames, seed=0):
    """The labels, shuffled among the prompts of each frame: there is nothing left to be known."""
    labels, frames = np.array(labels), np.asarray(frames)
    random = np.random.default_rng(seed)
    for frame in dict.fromkeys(frames):
        own = np.flatnonzero(frames == frame)
        labels[own] = labels[random.permutation(own)]
    return labels
