"""Do intervals and tests hold where prompts that begin alike have alike entropies?

Real prompts (benchmarks/data) and their first words as clusters, drawn with replacement; the truth
is the population's own, and a word that is drawn twice counts as two words:

    own      n words in every category, each with its prompts of that category
    shared   n words, each with as many prompts in every category as it has in the one that has
             fewest of them, drawn with replacement
    unequal  n words, each with all of its prompts in every category: a word may have nine in one
             and one in another, carry all variance of a head, and be missing in a quarter of the
             draws. What a sample does not hold no method sees: printed, not judged

For the tests a null is made true and everything else kept: every head of every category is shifted
to its mean in `neutral`, or every layer of the second run to the indices of the first. Sets about
nobody are judged as they are: their categories differ only in how sentences begin.

A row is (what, n, method, one number a data set, kind), which calibration.py judges and prints.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from simulated_calibration import count_test

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs.npz import read_npz
from rolecircuits.stats import audit, contrasts, index_inference, resampling
from rolecircuits.stats.indices import INDICES, indices_of_means
from rolecircuits.stats.units import labels_of

DATA = Path(__file__).with_name("data")
FORMATS = ("raw", "chat")
ARRAYS = ["values", "category", "frame", "filler", "text"]
DRAWS, FAMILY_DRAWS = 999, 1999
ALONE = "prompts alone"  # what is not in use: every prompt a unit
UNEQUAL = "clusters, extreme"
WAYS = ("own", "shared", "unequal")
TESTED = {"RFC": ("self_referent", "neutral"), "RSI": ("confounder", "self_referent")}


def read_data(name):
    """{array: values} of one file of benchmarks/data."""
    path = DATA / f"{name}.npz"
    if not path.is_file():
        raise UserError(f"{path}: not there; benchmarks/data/make_data.py writes it")
    return read_npz(path, ARRAYS)


@dataclass
class Words:
    """Prompts of two runs (raw, chat), whose first words are the population.

    runs  [run [prompt, layer, head], ...]    rows  {(category, word): its prompts}
    """

    category: np.ndarray
    runs: list
    rows: dict

    @classmethod
    def read(cls, name="prompts"):
        data = [read_data(f"{name}_{form}") for form in FORMATS]
        category, word = data[0]["category"], data[0]["frame"]
        keys = zip(category.tolist(), word.tolist(), strict=True)
        rows = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        return cls(category, [own["values"].astype(np.float64) for own in data], rows)

    def words(self, way):
        """{category: its words}: those of every category, unless the way is `own`."""
        of = {c: [word for name, word in self.rows if name == c] for c in CATEGORIES}
        if way == "own":
            return of
        common = [word for word in of["neutral"] if all(word in own for own in of.values())]
        return dict.fromkeys(CATEGORIES, common)

    def weights(self, way):
        """{category: [prompt] how many of a word's prompts this one stands for, 0 if none}."""
        weights = {c: np.zeros(len(self.category)) for c in CATEGORIES}
        for c, words in self.words(way).items():
            for word in words:
                own = self.rows[c, word]
                weights[c][own] = self.size(word, way, c) / len(own)
        return weights

    def size(self, word, way, category):
        """Prompts of a word that are drawn together in a category."""
        if way == "shared":
            return min(len(self.rows[c, word]) for c in CATEGORIES)
        return len(self.rows[category, word])

    def population(self, way, null=None):
        """(runs under this null, {category: mean [layer, head]} of each): all words once."""
        weights = self.weights(way)

        def means_of(run):
            return {c: np.tensordot(w, run, axes=1) / w.sum() for c, w in weights.items()}

        runs = [run.copy() for run in self.runs]
        means = [means_of(run) for run in runs]
        for r, run in enumerate(runs if null else []):
            layer = {c: mean.mean(axis=-1, keepdims=True) for c, mean in means[r].items()}
            first = {c: mean.mean(axis=-1, keepdims=True) for c, mean in means[0].items()}
            for c in CATEGORIES:
                wanted = means[r]["neutral"] - means[r][c]
                if null == "runs":
                    wanted = first[c] / first["neutral"] * layer["neutral"] - layer[c]
                run[self.category == c] += wanted
        return runs, [means_of(run) for run in runs]

    def draw(self, rng, n, way):
        """(prompts, category, unit), each [row], of n words (a category)."""
        rows, category, unit, drawn = [], [], [], 0
        words = self.words(way)
        for c in CATEGORIES if way == "own" else [None]:
            chosen = rng.integers(len(words[c or "neutral"]), size=n)
            for i in chosen:
                for name in [c] if c else CATEGORIES:
                    word = words[name][i]
                    own = self.rows[name, word]
                    if way == "shared":
                        own = rng.choice(own, size=self.size(word, way, name)).tolist()
                    rows += own
                    category += [name] * len(own)
                    unit += [drawn] * len(own)
                drawn += 1
        order = np.argsort([CATEGORIES.index(name) for name in category], kind="stable")
        return np.array(rows)[order], np.array(category)[order], np.array(unit)[order]


def coverage_rows(rng, n, n_datasets, population, way):
    """Coverage of the intervals of layers and their mean, of contrasts, of means over prompts."""
    runs, means = population.population(way)
    layers = [{c: mean.mean(axis=-1) for c, mean in of.items()} for of in means]
    truths = [indices_of_means(of.get) for of in layers]
    change = {index: truths[1][index] - truths[0][index] for index in INDICES}
    values, hits, how = [run.mean(axis=-1) for run in runs], {}, method_of(way)
    cases = [(form, r, None, truths[r]) for r, form in enumerate(FORMATS)]
    for i in range(n_datasets):
        rows, *labels = population.draw(rng, n, way)
        for form, r, _, truth in [*cases, ("chat - raw", 1, 0, change)]:
            base = values[0][rows] if form == "chat - raw" else None
            own = (values[r][rows], *labels, base, DRAWS, i)
            for index, found in index_inference.infer_indices(*own).items():
                _count(hits, f"{form}: {index.upper()}", found, truth[index], how)
            for index, found in index_inference.infer_mean_indices(*own).items():
                _count(hits, f"{form}: mean {index.upper()}", found, truth[index].mean(), how)
        for form, r, _, _ in cases:
            own = values[r][rows]
            for first, second in contrasts.CONTRASTS.values():
                found = contrasts.infer_contrast(own, *labels, (first, second), DRAWS, i)
                truth = layers[r][second] - layers[r][first]
                _count(hits, f"{form}: differences", found, truth, how)
            chosen = labels[0] == "self_referent"
            mean = resampling.infer_mean(own[chosen], None, labels[1][chosen], n_resamples=DRAWS)
            _count(hits, f"{form}: mean of a category", mean, layers[r]["self_referent"], how)
            naive = index_inference.infer_indices(own, labels[0], None, None, DRAWS, i)["rsi"]
            _count(hits, f"{form}: RSI", naive, truths[r]["rsi"], ALONE)
    return [(f"words, {way}, {w}", n, m, x, "coverage") for (w, m), x in hits.items()]


def method_of(way):
    """What the table calls the method, so that `unequal` is not judged."""
    return UNEQUAL if way == "unequal" else "clusters"


def _count(hits, what, found, truth, method):
    if np.isnan(found.low).all():  # too few effective frames: there is no interval to judge
        return
    inside = (found.low <= truth) & (truth <= found.high)
    hits.setdefault((what, method), []).append(np.mean(inside))


def level_rows(rng, n, n_datasets, population, way):
    """Rejections of true nulls, one layer or head at a time and as families."""
    equal, _ = population.population(way, "categories")
    same, _ = population.population(way, "runs")
    seen, how = {}, method_of(way)
    for i in range(n_datasets):
        rows, *labels = population.draw(rng, n, way)
        tests = {}
        for form, run in zip(FORMATS, equal, strict=True):
            for name, contrast in TESTED.items():
                for size, own in (("layers", run[rows].mean(axis=-1)), ("heads", run[rows])):
                    key = f"{form}: {name}, {size}", how
                    tests[key] = contrasts.infer_contrast(own, *labels, contrast, FAMILY_DRAWS, i)
            own = run[rows].mean(axis=-1), labels[0], None
            tests[f"{form}: RSI, layers", ALONE] = contrasts.infer_contrast(
                *own, TESTED["RSI"], DRAWS, i
            )
        base, own = (run[rows].mean(axis=-1) for run in same)
        two = index_inference.infer_indices(own, *labels, base, FAMILY_DRAWS, i)
        tests |= {(f"chat - raw: {index.upper()}, layers", how): two[index] for index in two}
        tests = {key: found for key, found in tests.items() if not np.isnan(found.p).all()}
        for key, found in tests.items():
            count_test(seen, key, found, key[1] != ALONE)
    return [(f"words, {way}, {w}", n, m, x, kind) for (w, m, kind), x in seen.items()]


def nobody_rows(rng, n, n_datasets):
    """Sets about nobody: share of layers and heads that pass Benjamini-Hochberg, a set a number."""
    shares = {}
    for path in sorted(DATA.glob("nobody_*.npz")):
        data = read_npz(path, ARRAYS)
        form, values = path.stem.rsplit("_", 1)[1], data["values"].astype(np.float64)
        run = as_run(data)
        for name, contrast in TESTED.items():
            for size, own in (("layers", values.mean(axis=-1)), ("heads", values)):
                passed = 0.0
                if audit.contrast_reason(run, contrast) is None:
                    found = contrasts.infer_contrast(own, *labels_of(run), contrast)
                    passed = (contrasts.q_values(found.p) < 0.05).mean()
                shares.setdefault((f"{form}: {name}, {size}", f"nobody {size}"), []).append(passed)
    return [
        (f"about nobody, {what}", 30, "clusters", x, kind) for (what, kind), x in shares.items()
    ]


def as_run(data):
    """What stats.audit needs of a run, from one file of benchmarks/data."""
    names, counts = np.unique(data["category"], return_counts=True)
    return SimpleNamespace(
        category=data["category"],
        frame=data["frame"],
        filler=data["filler"],
        pair_id=np.full(len(data["category"]), -1),
        crossed=False,
        counts=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        prompts=[{"text": text} for text in data["text"].tolist()],
    )
