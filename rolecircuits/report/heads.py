"""The section of heads: a map of every head, and the values of one head, prompt by prompt.

Arrays travel packed (page.pack): measures of heads as float32 whose last bits are rounded away,
values of rows as whole numbers 0 to STEPS between the smallest and the largest of their head.
Where a run has more values than POINTS_LIMIT, only the normalised kind is kept, and then only the
heads with the largest |g|; the page says so.
"""

import numpy as np

from rolecircuits.inputs.specs import same_weights
from rolecircuits.report import charts
from rolecircuits.report.layers import measured
from rolecircuits.report.page import pack
from rolecircuits.report.palette import EXCESS
from rolecircuits.report.section import Section, run_facts, run_key, show_interval
from rolecircuits.runs.edit_results import read_sweep
from rolecircuits.runs.files import read_json
from rolecircuits.stats.indices import KIND_NAMES
from rolecircuits.stats.role_tests import slot_masses, strongest_heads

MEASURES = ("estimate", "low", "high", "g", "p", "q", "p_max")
POINTS_LIMIT = 1_300_000  # values of all runs together
UNDEFINED, STEPS = 255, 254
KEPT_BITS = 14  # of the 23 of a float32's fraction: a relative error below 1/30,000
SHOWN_WITHOUT_SCRIPT = 12


def heads_section(context):
    """A map of every head by layer, and the rows behind each."""
    kinds, heads = choose_points(context)
    runs = {}
    for key, run in context.runs.items():
        numbers = context.numbers[key]
        runs[run_key(key)] = run_data(run, numbers)
        runs[run_key(key)]["points"] = {
            kind: pack_points(numbers.values[kind], heads[key]) for kind in kinds
        }
        runs[run_key(key)]["pointed"] = None if heads[key] is None else heads[key].tolist()
        swept = sweep_kl(context, run)
        if swept is not None:
            swept = {"packed": pack(round_bits(swept["kl"])), "said": swept["said"]}
        runs[run_key(key)]["kl"] = swept
    return Section(
        "heads",
        "Heads",
        "Each cell is a head: red where attention on the first-named category is the more focused, "
        "blue where it is the less. Choose a cell to see the values behind it. Other quantities: "
        "attention on the words of the person, what cutting a head does.",
        {"rows": static_rows(context), "columns": STATIC_COLUMNS},
        {
            "runs": runs,
            "measures": MEASURES,
            "undefined": UNDEFINED,
            "steps": STEPS,
            "swept": [", ".join(key.split("|")) for key, own in runs.items() if own["kl"]],
            "excess": EXCESS,
            "map": charts.head_map(),
            "spread": charts.head_points([], []),
        },
    )


STATIC_COLUMNS = ("set", "run", "contrast", "layer", "head", "difference in focus", "g", "q")


def run_data(run, numbers):
    """What one run gives the map: its tests, its masses on the slot, the labels of its rows."""
    tests = {
        kind: {name: pack_measures(found) for name, found in of_kind.items()}
        for kind, of_kind in numbers.contrast_heads.items()
    }
    data = {"facts": run_facts(run, ("", "")), "tests": tests, "slot": None}
    data["shape"] = [run.n_layers, run.n_heads]
    if run.has_slots:
        masses = slot_masses(run)
        uniform = masses.pop("slot_uniform")
        excess = run.slot_mass.mean(axis=0, dtype=np.float64) - uniform
        data["slot"] = pack(round_bits(excess))
    names = list(dict.fromkeys(numbers.category.tolist()))
    data["category"] = [names.index(name) for name in numbers.category.tolist()]
    data["categories"] = names
    rows = numbers.row_name.tolist()
    labels = list(dict.fromkeys(rows))
    place = {label: i for i, label in enumerate(labels)}
    data["rows"], data["row"] = labels, [place[name] for name in rows]
    return data


def pack_measures(found):
    """MEASURES of a contrast [layer, head], one after the other."""
    columns = measured(found) | {"g": found["g"]}
    return pack(round_bits(np.stack([columns[name] for name in MEASURES])))


def round_bits(values):
    """float32 with the last bits rounded away, which gzip makes short; NaN stays NaN."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    drop = 23 - KEPT_BITS
    rounded = (bits + (1 << (drop - 1))) >> drop << drop
    return np.where(np.isfinite(values), rounded, bits).astype(np.uint32).view(np.float32)


def pack_points(values, heads=None):
    """{"ends", "packed"} of values [row, layer, head], or of those heads (flat indices).

    ends    float32 [2, head], the smallest and the largest value of each head
    packed  whole numbers [head, row]: a value is low + number / STEPS (high - low), and so off by
            at most 0.2 % of the range of its head; UNDEFINED stands for NaN
    """
    flat = values.reshape(len(values), -1)
    flat = flat if heads is None else flat[:, heads]
    there = np.isfinite(flat)
    low = np.where(there, flat, np.inf).min(axis=0)
    high = np.where(there, flat, -np.inf).max(axis=0)
    ends = np.where(there.any(axis=0), np.stack([low, high]), 0).astype(np.float32)
    width = ends[1] - ends[0]
    scaled = (np.where(there, flat, ends[0]) - ends[0]) / np.where(width > 0, width, 1) * STEPS
    whole = np.where(there, np.rint(np.clip(scaled, 0, STEPS)), UNDEFINED).astype(np.uint8)
    return {"ends": pack(ends), "packed": pack(np.ascontiguousarray(whole.T))}


def choose_points(context):
    """(kinds, {run: flat indices of the heads whose rows are embedded, or None for all})."""
    sizes = {key: n.values["normalised"].size for key, n in context.numbers.items()}
    everything = dict.fromkeys(sizes)
    if sum(sizes.values()) * len(KIND_NAMES) <= POINTS_LIMIT:
        return tuple(KIND_NAMES), everything
    if sum(sizes.values()) <= POINTS_LIMIT:
        return ("normalised",), everything
    chosen = {}
    for key, numbers in context.numbers.items():
        values, found = numbers.values["normalised"], numbers.contrast_heads["normalised"]
        strength = np.nanmax([np.abs(np.nan_to_num(f["g"])) for f in found.values()], axis=0)
        n = POINTS_LIMIT // len(sizes) // len(values)
        heads = strongest_heads(strength, n)
        chosen[key] = np.array(sorted(i * strength.shape[1] + j for i, j in heads), dtype=int)
    return ("normalised",), chosen


def sweep_kl(context, run):
    """{"kl": [layer, head], mean over categories, "said"}; None without a sweep of this run."""
    if context.folders.sweep is None:
        return None
    config = read_json(context.folders.sweep / "experiment_config.json")
    arrays, _, method = read_sweep(context.folders.sweep, config)
    kl = arrays["kl"].mean(axis=-1)
    same = same_weights(config["model"], run.config["model"]) and kl.shape == run.entropy.shape[1:3]
    if not same or config["prompts"]["format"] != run.prompt_format:
        return None
    arguments = config.get("arguments") or {}
    of = f"{arrays['kl_by_prompt'].shape[-1]} prompts of {arguments.get('prompts') or 'original'}"
    return {"kl": kl, "said": f"KL: sweep ({method}) of {of}."}


def static_rows(context):
    """The strongest heads of every run and first contrast, for readers without JavaScript."""
    rows = []
    for (name, side), numbers in context.numbers.items():
        for contrast, found in list(numbers.contrast_heads["normalised"].items())[:1]:
            columns = measured(found)
            strength = found["g"] if np.isfinite(found["g"]).any() else columns["estimate"]
            for at in strongest_heads(strength, SHOWN_WITHOUT_SCRIPT):
                ends = (columns[c][at] for c in ("estimate", "low", "high"))
                q = "-" if np.isnan(columns["q"][at]) else f"{columns['q'][at]:.4f}"
                shown = (show_interval(*ends, 4), f"{found['g'][at]:+.2f}", q)
                rows.append((name, side, contrast, *at, *shown))
    return rows
