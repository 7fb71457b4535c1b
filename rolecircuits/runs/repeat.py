"""Run an analysis again from its run folder alone, and say whether the numbers came back.

    python activation_analysis.py --repeat results_activation_analysis/run_20260101_120000

    arguments   experiment_config.json of the run, through the same parser as a command line
    model       its commit, or its files; changed weights or tokenizer are said before the run
    prompts     the texts in prompts.jsonl, proved by the SHA-256 in the config; where the prompt file or the built-in set
                has changed or is gone, that is said
    verdict     attention.npz bit-identical, equal within deterministic.TOLERANCE, or different: where and by how much

The repeated run becomes a folder repeat_<time> beside the first one, with repeat.json in it; no latest_* link is moved.
Flags that may be given with --repeat (FREE) say where and how, not what; whoever changes --device or --batch_size asks
whether the numbers depend on it. A recorded --trust_remote_code is not believed: it must be given again.

Axes: prompt, layer, head, query.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np

from deterministic import TOLERANCE
from output_manager import load_run
from prompts import load_prompts
from rolecircuits.inputs.categories import Prompt, prompt_set_sha256
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.runs.arrays import ARRAYS

SCRIPT = "activation_analysis.py"
FREE = (
    "model_id",
    "device",
    "device_map",
    "batch_size",
    "output_dir",
    "raw",
    "trust_remote_code",
    "no_verify",
    "verbose",
)
PROMPT_FIELDS = ("id", "category", "pair_id", "text")
IDENTICAL, CLOSE, DIFFERENT = "bit-identical", "equal within tolerance", "different"


def given_flags(parser, argv):
    """{flag: value} of the flags that stand on the command line, whether or not they have the default's value."""
    nothing = object()
    blank = Namespace(**{action.dest: nothing for action in parser._actions})
    return {
        flag: value
        for flag, value in vars(parser.parse_args(argv, blank)).items()
        if value is not nothing
    }


def check_given(parser, argv):
    """What was given beside --repeat; a flag that would make it another run is refused."""
    given = given_flags(parser, argv)
    given.pop("repeat")
    wrong = [flag for flag in given if flag not in FREE]
    if wrong:
        allowed = ", ".join(f"--{flag}" for flag in FREE)
        parser.error(
            f"--{wrong[0]} with --repeat: the run says what it was; beside it are allowed {allowed}"
        )
    return given


def recorded_arguments(parser, run, given):
    """(arguments of a run, notes): as its command line gave them, parsed and checked again, changed by `given`.

    The model is that of the recorded commit. An argument that the run does not record has its default, and a note.
    """
    config = run.config
    if config.get("script") != SCRIPT or not isinstance(config.get("arguments"), dict):
        raise UserError(
            f"--repeat {run.path}: was not written by {SCRIPT}; only its runs can be repeated"
        )
    recorded, notes, words = config["arguments"], [], []
    for action in parser._actions:
        flag = action.dest
        if flag in ("help", "repeat", "no_verify", "verbose"):
            continue
        if flag not in recorded:
            notes.append(
                f"the run does not record --{flag}: its default {action.default!r} is taken"
            )
        elif action.nargs == 0:
            words += [f"--{flag}"] if recorded[flag] is True else []
        elif recorded[flag] is not None:
            words.append(f"--{flag}={recorded[flag]}")
    known = {action.dest for action in parser._actions}
    notes += [
        f"the run records --{printable(flag)}, which is unknown here"
        for flag in recorded
        if flag not in known
    ]
    parser.prog = printable(run.path / "experiment_config.json")
    args = parser.parse_args(words)
    if args.trust_remote_code and not given.get("trust_remote_code"):
        raise UserError(
            f"--repeat {run.path}: the run used --trust_remote_code; read the model's code and give it again"
        )
    args.revision = config["model"].get("revision") or args.revision
    is_folder = config["model"].get("weights_sha256") and not args.model_id.startswith("bundled:")
    if is_folder and "model_id" not in given and not Path(args.model_id).expanduser().is_dir():
        raise UserError(
            f"--repeat {run.path}: its model was the folder {printable(args.model_id)}, which is not here; call it from "
            "where the run was made, or give --model_id FOLDER"
        )
    args.output_dir = str(run.path.parent)
    if "device" in given or "device_map" in given:
        args.device = args.device_map = None
    vars(args).update({flag: value for flag, value in given.items() if value is not None})
    return args, notes


def recorded_prompts(run):
    """The prompts of a run as they were fed, in order, those that failed included; the config's SHA-256 proves them."""
    facts, rows = (
        run.config["prompts"],
        [{key: row.get(key) for key in PROMPT_FIELDS} for row in run.prompts],
    )
    try:
        for failed in sorted(facts["failed"], key=lambda item: item["index"]):
            rows.insert(failed["index"], {key: failed[key] for key in PROMPT_FIELDS})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"--repeat {run.path}: some prompts failed and the run does not hold their texts"
        ) from error
    prompts = [Prompt(**row) for row in rows]
    if prompt_set_sha256(prompts) != facts.get("sha256"):
        raise UserError(
            f"--repeat {run.path}: the texts in prompts.jsonl are not those of its config; it was changed"
        )
    return prompts


def prompt_source_note(prompts, args):
    """None if the prompt file, or the built-in set, still gives these prompts; else what is used instead, and why."""
    source = f"--prompts {printable(args.prompts)}" if args.prompts else "the built-in set"
    try:
        found, _ = load_prompts(args.prompts, args.prompts_per_category)
    except UserError as error:
        return f"{error}; the texts in prompts.jsonl are used"
    if prompt_set_sha256(found) != prompt_set_sha256(prompts):
        return f"{source} has other prompts now; the texts in prompts.jsonl are used"
    return None


def model_changes(before, after):
    """What a reader must know about the model before it runs: facts that differ from those recorded."""
    named = {
        "weights_sha256": "weights",
        "tokenizer_sha256": "tokenizer",
        "revision": "commit",
        "architecture": "class",
    }
    names = [*named, "n_layers", "n_heads", "dtype", "device", "prepends_bos"]
    return list_changes("model", before, after, {name: named.get(name, name) for name in names})


def environment_changes(before, after):
    """What else changed between two configs: library versions, code, processor, threads, batch size."""
    lines = []
    for part in ("packages", "git", "determinism"):
        old, new = before.get(part) or {}, after.get(part) or {}
        lines += list_changes(part, old, new, {name: name for name in sorted(set(old) | set(new))})
    return lines + list_changes(
        "argument", before["arguments"], after["arguments"], {"batch_size": "batch_size"}
    )


def list_changes(what, before, after, names):
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [
        f"{what} {names[name]}: was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name in changed
    ]


def _short(value):
    text = printable("not recorded" if value is None else value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def compare_arrays(before, after, tolerance):
    """{"verdict", "tolerance", "largest": place or None, "arrays": {name: finding}} of two sets of ARRAYS.

    before, after  {name: array}    tolerance  largest difference of a float that is still rounding
    finding        verdict, and where values differ: how many, the largest difference and where it is
    """
    labels = {"prompt": before["prompt_id"]}
    found = {
        name: _compare_array(name, before[name], after[name], tolerance, labels) for name in ARRAYS
    }
    verdicts = {item["verdict"] for item in found.values()}
    places = [item["largest"] for item in found.values() if item.get("largest")]
    largest = max(places, key=lambda place: place["difference"], default=None)
    verdict = next((v for v in (DIFFERENT, CLOSE) if v in verdicts), IDENTICAL)
    return {"verdict": verdict, "tolerance": tolerance, "largest": largest, "arrays": found}


def _compare_array(name, a, b, tolerance, labels):
    if a.dtype.kind != b.dtype.kind or a.shape != b.shape:
        return {"verdict": DIFFERENT, "why": f"{a.dtype} {a.shape} became {b.dtype} {b.shape}"}
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return {"verdict": IDENTICAL}
    if a.dtype.kind != "f":
        return {
            "verdict": DIFFERENT,
            "n_different": int((a != b).sum()),
            "why": "labels or token counts changed",
        }
    undefined = np.isnan(a) != np.isnan(b)
    gap = np.where(undefined, np.inf, np.abs(a.astype(np.float64) - b))
    gap = np.where(np.isnan(gap), 0.0, gap)
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    axes = [axis if isinstance(axis, str) else "end" for axis in ARRAYS[name][1]]
    where = {
        axis: labels[axis][i] if axis in labels else int(i)
        for axis, i in zip(axes, place, strict=True)
    }
    largest = {
        "array": name,
        **where,
        "was": float(a[place]),
        "is": float(b[place]),
        "difference": float(gap[place]),
    }
    finding = {
        "verdict": CLOSE if gap.max() <= tolerance else DIFFERENT,
        "n_different": int((gap > 0).sum()),
    }
    return finding | {
        "n_beyond_tolerance": int((gap > tolerance).sum()),
        "n": int(gap.size),
        "largest": largest,
    }


def describe_verdict(found):
    """The comparison in one line, and one more for every array that is different."""
    lines = [f"attention.npz: {found['verdict']}"]
    if found["verdict"] == CLOSE:
        lines[0] += f" {found['tolerance']:g}: largest difference {_place(found['largest'])}"
    for name, item in found["arrays"].items() if found["verdict"] == DIFFERENT else ():
        if item["verdict"] == DIFFERENT and "largest" in item:
            beyond = (
                f"{item['n_beyond_tolerance']} of {item['n']} values beyond {found['tolerance']:g}"
            )
            lines.append(f"{name}: {beyond}; largest {_place(item['largest'])}")
        elif item["verdict"] == DIFFERENT:
            lines.append(f"{name}: {item['why']}")
    return lines


def _place(largest):
    where = ", ".join(
        f"{axis} {largest[axis]}"
        for axis in ("prompt", "layer", "head", "query", "end")
        if axis in largest
    )
    return printable(
        f"{largest['difference']:.3g} at {where} ({largest['was']:.6g}, now {largest['is']:.6g})"
    )


class Repetition:
    """One repetition: what is repeated, its arguments and prompts, what changed, and in the end the verdict."""

    def __init__(self, parser, path, given):
        self.run = load_run(path, verify=not given.get("no_verify"))
        self.args, self.notes = recorded_arguments(parser, self.run, given)
        self.prompts = recorded_prompts(self.run)
        self.notes += [note] if (note := prompt_source_note(self.prompts, self.args)) else []
        self.changes, self.found = [], None

    def announce(self):
        """Say what is repeated, and what is not as it was."""
        facts = self.run.config
        print(
            f"repeat of {printable(self.run.path)}: {self.run.label}, {len(self.prompts)} prompts"
        )
        for note in self.notes:
            print(f"note: {note}")
        if facts["prompts"]["failed"]:
            print(f"note: {len(facts['prompts']['failed'])} prompts failed in the first run")

    def check_model(self, facts):
        """Say what changed about the model, before it is run."""
        if (facts["n_layers"], facts["n_heads"]) != (self.run.n_layers, self.run.n_heads):
            raise RunFailed(
                f"the run has {self.run.n_layers} layers x {self.run.n_heads} heads, the model that is there now "
                f"{facts['n_layers']} x {facts['n_heads']}; it is another model"
            )
        self.changes = model_changes(self.run.config["model"], facts)
        for line in self.changes:
            print(f"changed: {line}")

    def compare(self, arrays, config):
        """repeat.json: the verdict over attention.npz, and everything that is known to have changed."""
        before = {name: getattr(self.run, name) for name in ARRAYS}
        found = compare_arrays(before, arrays, TOLERANCE[config["model"]["dtype"]])
        changed = self.changes + environment_changes(self.run.config, config)
        self.found = {
            "repeat_of": self.run.path.name,
            **found,
            "changed": changed,
            "notes": self.notes,
        }
        return self.found

    def report_verdict(self):
        """Print the verdict and what may explain it; returns the exit code."""
        for line in self.found["changed"][len(self.changes) :]:
            print(f"changed: {line}")
        print("\n".join(describe_verdict(self.found)))
        return int(self.found["verdict"] == DIFFERENT)
