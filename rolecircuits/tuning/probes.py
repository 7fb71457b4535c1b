"""Linear probes for the person that a prompt is about, in the residual stream of every layer.

A probe is trained on some frames (sentences with one open slot) and asked about others: within a
frame everything but the person is equal, and what a probe learns of one frame's words must not
count. At the final query the person stands only where attention has brought it; in the slot itself
it could be read from the token.

    accuracy   share of held-out prompts whose person is named; knowing nothing gives 1 / k
    nats       ln k + mean ln p(person) of held-out prompts: what the probe knows, in nats. Between
               0 (nothing) and ln k (all), below 0 where it is wrong and sure. Unlike accuracy it
               still moves where nearly all prompts are named

Erasure is LEACE (Belrose et al. 2023, arXiv 2306.03819): the smallest affine change after which no
linear probe trained on the same prompts knows the concept. An erasure can do nothing at all and
still look like one that was needed, so `check_erasure` says which. Needs requirements-tuning.txt.
Axes: prompt, layer, unit.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from rolecircuits.inputs.errors import UserError
from rolecircuits.tuning.extras import INSTALL
from rolecircuits.tuning.folds import fold_of, permute_within

try:
    import torch
    from concept_erasure import LeaceFitter
    from sklearn.linear_model import LogisticRegression
except ImportError as error:
    raise UserError(
        f"probes need scikit-learn and concept-erasure ({error.name} is missing): {INSTALL}"
    ) from error

# L2 strength of the probe (scikit-learn's C) for standardised units divided by the root of their
# number, so that it means the same in a model of any width. Fixed: one chosen at every checkpoint
# would be a source of noise between checkpoints.
STRENGTH = 10.0
LEVEL = 0.01  # of the one-sided t-test over frames by which an accuracy is above chance


@dataclass
class Probed:
    """Held-out results of a probe a layer, NaN in layers that were not read.

    correct  [prompt, layer] 0 or 1    nats  [prompt, layer] ln k + ln p(person)
    frames   [prompt] str              chance  1 / k
    """

    correct: np.ndarray
    nats: np.ndarray
    frames: np.ndarray
    chance: float

    @property
    def accuracy_profile(self):
        """Accuracy by layer: [layer]."""
        return self.correct.mean(axis=0)

    @property
    def nats_profile(self):
        """Nats by layer: [layer]."""
        return self.nats.mean(axis=0)

    @property
    def accuracy(self):
        """Mean accuracy over layers."""
        return float(np.nanmean(self.accuracy_profile))

    def above_chance(self):
        """Whether accuracy over layers is above chance: a one-sided t-test whose unit is the frame.

        Prompts of one frame, and layers of one prompt, are no independent samples.
        """
        per_prompt = np.nanmean(self.correct, axis=1)
        own = [per_prompt[self.frames == frame].mean() for frame in dict.fromkeys(self.frames)]
        excess = np.array(own) - self.chance
        if np.ptp(excess) < 1e-12:
            return bool(excess[0] > 1e-12)
        return bool(stats.ttest_1samp(excess, 0, alternative="greater").pvalue < LEVEL)


def probe_layers(values, labels, frames, eraser=None):
    """The Probed of a probe for `labels` in every layer, every frame held out once.

    values  [prompt, layer, unit], NaN in layers that were not read
    labels  [prompt] str, what is to be named      frames  [prompt] str
    eraser  function (train [n, feature], labels [n] int, frames [n]) -> function of such features,
            fitted on training frames and used on both sides; None: nothing is erased
    """
    return transfer_layers(values, [values], labels, frames, eraser)[0]


def transfer_layers(values, asked, labels, frames, eraser=None):
    """`probe_layers` of the same trained probes asked about held-out frames of several activations.

    asked    list of [prompt, layer, unit], of the same prompts: of other models, say
    returns  a Probed of each of them
    """
    frames = np.asarray(frames)
    names, codes = np.unique(labels, return_inverse=True)
    folds = fold_of(frames)
    correct, nats = (np.full((len(asked), *values.shape[:2]), np.nan) for _ in range(2))
    for fold in range(folds.max() + 1):
        test, train = folds == fold, folds != fold
        if len(np.unique(codes[train])) < len(names):
            raise UserError("probes need every category in every frame: a crossed set")
        for layer in _read_layers(values):
            fitted, *others = _features(values[train, layer], *(x[test, layer] for x in asked))
            if eraser is not None:
                erase = eraser(fitted, codes[train], frames[train])
                fitted, *others = (erase(x) for x in (fitted, *others))
            probe = _fit(fitted, codes[train])
            for i, features in enumerate(others):
                logs = probe.predict_log_proba(features)
                correct[i, test, layer] = logs.argmax(axis=1) == codes[test]
                own = logs[np.arange(test.sum()), codes[test]]
                nats[i, test, layer] = np.log(len(names)) + own
    chance = 1 / len(names)
    return [Probed(*found, frames, chance) for found in zip(correct, nats, strict=True)]


def _read_layers(values):
    return np.flatnonzero(np.isfinite(values).all(axis=(0, 2)))


def _fit(features, codes):
    probe = LogisticRegression(C=STRENGTH, solver="newton-cg", tol=1e-4, max_iter=1000)
    return probe.fit(features, codes)


def _features(train, *tests):
    """All standardised by the training prompts and written in a basis of their span: a list.

    A penalised linear probe, and LEACE, lie in the span of what they are fitted on, so that the
    few coordinates there give the same as all units, in any width. [n, coordinate] float64 each.
    """
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 0, spread, 1.0) * np.sqrt(train.shape[1])
    train, *tests = ((x - mean) / scale for x in (train, *tests))
    squares, vectors = np.linalg.eigh(train @ train.T)
    kept = squares > 1e-9 * squares[-1]
    if not kept.any() or squares[-1] <= 0:
        return [np.zeros((len(x), 1)) for x in (train, *tests)]
    vectors, lengths = vectors[:, kept], np.sqrt(squares[kept])
    return [vectors * lengths, *(x @ train.T @ vectors / lengths for x in tests)]


def fit_leace(features, codes, frames):
    """LEACE fitted on features [n, coordinate] and their labels [n] int."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(codes), int(codes.max()) + 1)
    eraser = LeaceFitter.fit(torch.tensor(features), one_hot.double()).eraser
    return lambda values: eraser(torch.tensor(values)).numpy()


def fit_nothing(features, codes, frames):
    """An erasure that erases nothing: the known null of `check_erasure`."""
    return lambda values: values


def fit_permuted(features, codes, frames):
    """LEACE of labels permuted within frames: it erases, but not the concept."""
    return fit_leace(features, permute_within(codes, frames), frames)


NOTHING, ERASED, NOT_ERASED = "nothing to erase", "erased", "not erased"


def check_erasure(values, labels, frames, eraser=fit_leace):
    """Whether an erasure erases `labels` from the layers: a dict of plain values.

    verdict        "erased", "not erased", or "nothing to erase" where no probe is above chance
    before, after  mean accuracy over layers of a probe trained on (erased) training frames, asked
                   about (erased) held-out frames; before_profile, after_profile by layer
    fresh_before, fresh  the same where the eraser is fitted on one half of the frames and probes
                   are trained and asked inside the other: stricter, what an erasure of these frames
                   leaves to be found in new ones. Not part of the verdict
    chance         1 / k
    """
    before = probe_layers(values, labels, frames)
    after = probe_layers(values, labels, frames, eraser)
    return {
        "verdict": judge_erasure(before.above_chance(), after),
        "before": before.accuracy,
        "after": after.accuracy,
        "before_profile": before.accuracy_profile,
        "after_profile": after.accuracy_profile,
        "fresh_before": _fresh_accuracy(values, labels, frames, fit_nothing),
        "fresh": _fresh_accuracy(values, labels, frames, eraser),
        "chance": before.chance,
    }


def judge_erasure(there, after):
    """The verdict on a Probed after an erasure; there: whether anything was to be erased."""
    if not there:
        return NOTHING
    return NOT_ERASED if after.above_chance() else ERASED


def _fresh_accuracy(values, labels, frames, eraser):
    """Mean accuracy of probes inside one half of the frames, the eraser fitted on the other."""
    frames, labels = np.asarray(frames), np.asarray(labels)
    if len(set(frames)) < 4:
        return float("nan")
    _, codes = np.unique(labels, return_inverse=True)
    half, found = fold_of(frames, 2), []
    for part in range(2):
        fitted, asked = half != part, half == part
        erased = np.full((asked.sum(), values.shape[1], fitted.sum()), np.nan)
        for layer in _read_layers(values):
            train, test = _features(values[fitted, layer], values[asked, layer])
            new = eraser(train, codes[fitted], frames[fitted])(test)
            erased[:, layer] = 0
            erased[:, layer, : new.shape[1]] = new
        found.append(probe_layers(erased, labels[asked], frames[asked]).accuracy)
    return float(np.mean(found))
