"""Directions in the residual stream that are known before tuning, and how far a checkpoint moved.

Persona direction: mean activation at the final query under the system prompts of personas, minus
that under the default system text, over the same neutral questions, at step 0 (a mean difference as
in persona vectors, Chen et al. 2025, arXiv 2507.21509, and in the assistant axis, Lu et al. 2026,
arXiv 2601.10387, whose sign is the other). Any other system text moves the activations too, and in
early layers much the same way; so what plain system texts do on average is taken out (the direction
is at a right angle to it). A checkpoint is fed the questions with the default text:

    shift   (mean activation of the checkpoint - that of step 0) on the unit direction, in standard
            deviations of the questions along it at step 0. It grows with any drift that is not at
            a right angle to the direction
    cosine  between that difference and the direction, which does not grow with drift; 0 where
            nothing has moved

Self direction: mean difference self_referent - third_person inside the frames of a crossed set, at
step 0. A frame is measured along the direction of the other frames: along its own, noise would be
counted as separation that every later checkpoint loses.

Positive: towards the persona, and self-referent farther from third person than at step 0.
Axes: prompt, layer, unit.
"""

from dataclasses import dataclass

import numpy as np

from rolecircuits.tuning.folds import fold_of

SELF, OTHER = "self_referent", "third_person"


@dataclass
class PersonaDirection:
    """unit, mean  [layer, unit], of length 1; mean activation of the questions at step 0
    spread  [layer] standard deviation of the questions along it    reach  [layer] how far the
    personas' system prompts move the mean along it, in these
    """

    unit: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    reach: np.ndarray


@dataclass
class SelfDirection:
    """unit [fold, layer, unit] of length 1, from the frames of the other folds
    separation, spread  [layer] mean and standard deviation over frames of self - third person along
    it at step 0
    """

    unit: np.ndarray
    separation: np.ndarray
    spread: np.ndarray


def persona_direction(personas, others, default):
    """The PersonaDirection of activations at step 0 under system prompts of personas, under other,
    plain system texts, and under the default text: [prompt, layer, unit] each.

    The same questions in each, under every text.
    """
    mean = default.mean(axis=0, dtype=np.float64)
    moved = personas.mean(axis=0, dtype=np.float64) - mean
    common = _unit(others.mean(axis=0, dtype=np.float64) - mean)
    own = moved - np.einsum("lu,lu->l", moved, common)[:, None] * common
    unit = _unit(own)
    along = np.einsum("plu,lu->pl", default.astype(np.float64), unit)
    spread = along.std(axis=0, ddof=1)
    return PersonaDirection(unit, mean, spread, _over(np.linalg.norm(own, axis=-1), spread))


def persona_shift(default, direction):
    """(shift, cosine), both [layer], of a checkpoint's activations [prompt, layer, unit] with the
    default text, on a PersonaDirection.
    """
    moved = default.mean(axis=0, dtype=np.float64) - direction.mean
    along = np.einsum("lu,lu->l", moved, direction.unit)
    return _over(along, direction.spread), _over(along, np.linalg.norm(moved, axis=-1))


def self_direction(values, labels, frames):
    """The SelfDirection of activations [prompt, layer, unit] of a crossed set at step 0.

    labels, frames  [prompt] str
    """
    pairs, folds = _frame_differences(values, labels, frames)
    others = [pairs[folds != fold].mean(axis=0) for fold in range(folds.max() + 1)]
    unit = _unit(np.array(others))
    along = np.einsum("flu,flu->fl", pairs, unit[folds])
    return SelfDirection(unit, along.mean(axis=0), along.std(axis=0, ddof=1))


def self_separation(values, labels, frames, direction):
    """Change [layer] of the separation self - third person along a SelfDirection since step 0, in
    standard deviations over frames.
    """
    pairs, folds = _frame_differences(values, labels, frames)
    along = np.einsum("flu,flu->fl", pairs, direction.unit[folds]).mean(axis=0)
    return _over(along - direction.separation, direction.spread)


def _frame_differences(values, labels, frames):
    """(self - third person of every frame [frame, layer, unit], fold of every frame)."""
    labels, frames, folds = np.asarray(labels), np.asarray(frames), fold_of(frames)
    names = list(dict.fromkeys(frames))
    sides = [
        [
            values[(frames == name) & (labels == label)].mean(axis=0, dtype=np.float64)
            for name in names
        ]
        for label in (SELF, OTHER)
    ]
    return np.array(sides[0]) - np.array(sides[1]), np.array([folds[frames == n][0] for n in names])


def _unit(differences):
    """Each [..., unit] at length 1; 0 where there is no difference."""
    lengths = np.linalg.norm(differences, axis=-1, keepdims=True)
    return _over(differences, lengths)


def _over(values, by):
    """values / by, and 0 where both are 0."""
    by = np.where((by == 0) & (values == 0), 1.0, by)
    return values / by
