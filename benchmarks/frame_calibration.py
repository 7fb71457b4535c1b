"""Do intervals and tests hold where the frame is the unit? Crossed sets of known truth.

Two sources, each of n frames x 3 fillers x 4 persons:

    Population   frames drawn with replacement from those of saved runs; the truth is the runs' own.
                 A frame that is drawn twice counts as two frames.
    Simulated    log-normal values; parts that frame and filler give to all persons, and one of
                 every prompt; fillers correlate by rho inside a frame (simulated_runs.py)

For the tests a null is made true and everything else kept. In a population, frame by frame:

    categories   every head of every category is shifted to its mean in `neutral`
    runs         every layer of the second run is shifted to the indices of the first

A row is (what, n, method, one number a data set, kind), which calibration.py judges and prints.
"""

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from prompt_calibration import ALONE as PROMPTS
from prompt_calibration import FORMATS, read_data
from simulated_calibration import count_test
from simulated_runs import EFFECT, FILLERS, draw_world, simulate_frames

import output_manager
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats import contrasts, index_inference, resampling
from rolecircuits.stats.indices import INDICES, indices_of_means, prompt_values
from rolecircuits.stats.moments import defined_moments
from rolecircuits.stats.units import Design, frame_values, labels_of

BLOCK = 20
DRAWS, FAMILY_DRAWS = 999, 1999
TESTED = {"RFC": ("self_referent", "neutral"), "RSI": ("confounder", "self_referent")}


@dataclass
class Simulated:
    """Made-up models, a new one in every draw; coverage of 10 layers, families of 270 heads."""

    rho: float

    @property
    def names(self):
        return (f"rho {self.rho:.1f}",)

    def draw(self, rng, n, n_data, null=None):
        """([a run [prompt, data set, layer, head], ...], [{category: its mean [layer]}, ...])."""
        changed = {**EFFECT, "self_referent": 0.9}
        flat = dict.fromkeys(CATEGORIES, 1.0)
        effects = {None: (EFFECT, changed), "categories": (flat, flat), "runs": (EFFECT, EFFECT)}
        world = draw_world(rng, *((10, 8) if null is None else (30, 9)))
        means = [
            {c: 0.6**r * effect[c] * world.level.mean(axis=-1) for c in CATEGORIES}
            for r, effect in enumerate(effects[null])
        ]
        return simulate_frames(rng, world, n, n_data, effects[null], self.rho), means


@dataclass
class Population:
    """The frames of one or two runs: names and values [category, frame, filler, layer, head]."""

    names: tuple
    runs: list

    def draw(self, rng, n, n_data, null=None):
        """As `Simulated.draw`; the runs share the frames that are drawn."""
        runs, drawn = self._under(null), rng.integers(self.runs[0].shape[1], size=(n, n_data))
        means = [dict(zip(CATEGORIES, run.mean(axis=(1, 2, 4)), strict=True)) for run in runs]
        values = [np.moveaxis(run[:, drawn], 2, 3) for run in runs]
        return [v.reshape(-1, *v.shape[3:]) for v in values], means

    def _under(self, null):
        """The runs with this null made true, or as they are."""
        at = CATEGORIES.index("neutral")
        if null == "categories":
            means = [run.mean(axis=(1, 2), keepdims=True) for run in self.runs]
            return [run - mean + mean[at] for run, mean in zip(self.runs, means, strict=True)]
        if null == "runs":
            means = [run.mean(axis=(1, 2, 4), keepdims=True) for run in self.runs]
            ratio = means[0] / means[0][at]
            pairs = zip(self.runs, means, strict=True)
            return [run - mean + ratio * mean[at] for run, mean in pairs]
        return self.runs


def read_population(paths):
    """The Population of complete crossed runs, in this order: two, a base and its instruct run."""
    if len(paths) > 2:
        raise UserError(f"--run: one or two runs, got {len(paths)}")
    runs = [output_manager.load_run(path) for path in paths]
    for run, path in zip(runs, paths, strict=True):
        if not run.crossed:
            raise UserError(f"--run {path}: a run of the prompt set `crossed` is needed")
    names = [run.prompt_format for run in runs]
    names = names if len(set(names)) == len(names) else ["base", "instruct"]
    facts = [
        (f"--run {path}", prompt_values(run), run) for run, path in zip(runs, paths, strict=True)
    ]
    return make_population(names, facts)


def read_kept():
    """The Population of the crossed runs kept in benchmarks/data, raw and chat."""
    data = [read_data(f"crossed_{form}") for form in FORMATS]
    facts = [(f"crossed_{f}.npz", own["values"], own) for f, own in zip(FORMATS, data, strict=True)]
    return make_population(
        FORMATS, [(where, values, SimpleNamespace(**own)) for where, values, own in facts]
    )


def make_population(names, facts):
    """facts  (what a message calls it, values [prompt, layer, head], anything with category, frame
    and filler [prompt]) of every run
    """
    values, cells = [], None
    for where, given, labels in facts:
        places = [CATEGORIES.index(name) for name in labels.category.tolist()]
        keys = list(zip(places, labels.frame.tolist(), labels.filler.tolist(), strict=True))
        rows = sorted(range(len(keys)), key=keys.__getitem__)
        own = [keys[row][1:] for row in rows[: len(rows) // len(CATEGORIES)]]
        cells = cells or own
        sizes = Counter(frame for frame, _ in cells)
        if set(sizes.values()) != {FILLERS} or own * len(CATEGORIES) != [keys[r][1:] for r in rows]:
            raise UserError(f"{where}: {FILLERS} fillers in every frame and category needed")
        if own != cells:
            raise UserError(f"{where}: its frames are not those of the other run")
        ordered = given[rows].astype(np.float64)
        values.append(ordered.reshape(len(CATEGORIES), -1, FILLERS, *ordered.shape[1:]))
    return Population(tuple(names), values)


def design_of_frames(n):
    """The Design of n frames x FILLERS fillers in every category, in the order of the draws."""
    k = FILLERS
    frame = np.tile(np.repeat([f"f{i}" for i in range(n)], k), len(CATEGORIES))
    filler = np.tile([f"w{i}" for i in range(k)], n * len(CATEGORIES))
    category = np.repeat(CATEGORIES, n * k)
    return Design(category, np.full(len(category), -1), frame, filler, crossed=True)


def coverage_rows(rng, n, n_datasets, source):
    """Coverage of the intervals of layers and of their mean; standard errors beside unpaired."""
    design, hits = design_of_frames(n), {}
    for block in range(0, n_datasets, BLOCK):
        runs, means = source.draw(rng, n, BLOCK)
        prompts = [run.mean(axis=-1) for run in runs]
        frames, labels = [frame_values(design, own) for own in prompts], labels_of(design)
        truths = [indices_of_means(mean.get) for mean in means]
        cases = [*zip(source.names, frames, [None] * len(frames), truths, strict=False)]
        if len(frames) == 2:
            change = {name: truths[1][name] - truths[0][name] for name in INDICES}
            cases.append((_joined(source), frames[1], frames[0], change))
        for name, own, base, truth in cases:
            for what, inside in _cover_indices(own, labels, base, truth, block).items():
                hits.setdefault((f"{name}: {what}", "frames"), []).append(inside)
        for name, *data in zip(source.names, prompts, frames, means, strict=False):
            for (what, method), seen in _cover_contrasts(design, *data, block).items():
                hits.setdefault((f"{name}: {what}", method), []).append(seen)
    return [
        (what, n, method, np.concatenate(x), "ratio" if "error" in what else "coverage")
        for (what, method), x in hits.items()
    ]


def _joined(source):
    """What a difference of two runs is called."""
    names = source.names[::-1]
    return " - ".join(names) if len(names) > 1 else f"two runs, {names[0]}"


def _cover_indices(values, labels, base, truth, seed):
    """{what: share of layers whose interval holds the truth [data set]}; values [row, data, layer].

    truth  {index: [layer]}
    """
    hits = {}
    for name, own in index_inference.infer_indices(values, *labels, base, DRAWS, seed).items():
        inside = (own.low <= truth[name]) & (truth[name] <= own.high)
        hits[name.upper()] = inside.mean(axis=-1)
    for i in range(values.shape[1]):
        bases = None if base is None else base[:, i]
        of_mean = index_inference.infer_mean_indices(values[:, i], *labels, bases, DRAWS, seed + i)
        for name, own in of_mean.items():
            inside = own.low <= truth[name].mean() <= own.high
            hits.setdefault(f"mean {name.upper()}", []).append(inside)
    return {what: np.array(inside, dtype=np.float64) for what, inside in hits.items()}


def _cover_contrasts(design, prompts, frames, means, seed):
    """{(what, method): [data set]}: coverage of differences, and ratios of standard errors."""
    found = {}
    for first, second in contrasts.CONTRASTS.values():
        truth = means[second] - means[first]
        own = contrasts.contrast_sides(frames, *labels_of(design), (first, second))
        alone = prompts[design.category == second], prompts[design.category == first], False
        for method, sides in (("frames", own), (PROMPTS, alone)):
            interval = resampling.infer_difference(*sides, DRAWS, seed)
            inside = (interval.low <= truth) & (truth <= interval.high)
            found.setdefault(("differences", method), []).append(inside.mean(axis=-1))
        error = _standard_error(own[0] - own[1])
        for method, sides in ((PROMPTS, alone), ("frames unpaired", own)):
            other = np.hypot(*(_standard_error(side) for side in sides[:2]))
            ratio = (error / other).mean(axis=-1)
            found.setdefault(("standard error / that of", method), []).append(ratio)
    return {key: np.mean(x, axis=0) for key, x in found.items()}


def _standard_error(values):
    n, _, variance = defined_moments(values)
    return np.sqrt(variance / n)


def level_rows(rng, n, n_datasets, source):
    """Rejections of true nulls, one layer or head at a time and as families."""
    design, seen = design_of_frames(n), {}
    for i in range(n_datasets):
        if i % BLOCK == 0:
            null, _ = source.draw(rng, n, BLOCK, "categories")
            same, _ = source.draw(rng, n, BLOCK, "runs")
        tests = {}
        for name, run in zip(source.names, null, strict=False):
            own = _test_categories(design, run[:, i % BLOCK], i)
            tests |= {(f"{name}: {what}", method): p for (what, method), p in own.items()}
        if len(same) == 2:
            base, own = (frame_values(design, run[:, i % BLOCK].mean(axis=-1)) for run in same)
            labels = labels_of(design)
            tested = index_inference.infer_indices(own, *labels, base, FAMILY_DRAWS, i)
            for index, p in tested.items():
                tests[f"{_joined(source)}: {index.upper()}, layers", "two runs"] = p
        for key, test in tests.items():
            count_test(seen, key, test, key[1] != PROMPTS)
    return [(what, n, method, x, kind) for (what, method, kind), x in seen.items()]


def _test_categories(design, heads, seed):
    """{(what, method): Inference} of equal categories: values [prompt, layer, head]."""
    tests, layers = {}, heads.mean(axis=-1)
    for what, contrast in TESTED.items():
        for size, values in (("layers", layers), ("heads", heads)):
            own = frame_values(design, values), *labels_of(design), contrast, FAMILY_DRAWS, seed
            tests[f"{what}, {size}", "frames"] = contrasts.infer_contrast(*own)
        sides = (layers[design.category == name] for name in contrast)
        alone = resampling.infer_difference(*sides, False, DRAWS, seed)
        tests[f"{what}, layers", PROMPTS] = alone
    return tests
