"""Run an analysis again from its run folder alone, and say whether the numbers came back.

    python activation_analysis.py --repeat results_activation_analysis/run_20260101_120000

    arguments   experiment_config.json of the run, through the same parser as a command line
    template    that of the model, or the text of a file in the config; it is told the same date
    capture     what the run did: the method, what it saved, and the batch size that was left after
                an out-of-memory error, whatever memory is free today
    model       its commit, or its files; changed weights or tokenizer are said before the run
    prompts     the texts in prompts.jsonl, proved by the SHA-256 in the config; where the prompt
                file or the built-in set has changed or is gone, that is said
    verdict     attention.npz bit-identical, equal within deterministic.ROUNDING_TOLERANCE, or
                different: where and by how much

The repeated run becomes a folder repeat_<time> beside the first one, with repeat.json in it; no
link is moved. Flags that may be given with --repeat say where and how, not what; whoever changes
--device or --batch_size asks whether the numbers depend on it. A recorded --trust_remote_code is
not believed: it must be given again.

Axes: prompt, layer, head, query.
"""

import os
from pathlib import Path

import numpy as np

from deterministic import ROUNDING_TOLERANCE
from rolecircuits.inputs.categories import Prompt, prompt_set_sha256
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.runs.arrays import ARRAYS, Run
from rolecircuits.runs.record import PATH_FLAGS, portable

SCRIPT = "activation_analysis.py"
CHOSEN = {"capture": "method", "raw": "raw", "batch_size": "batch_size"}  # flag: name in capture
NOT_RECORDED = (  # or of documents, which are not repeated
    *("help", "repeat", "no_verify", "verbose"),
    *("text_field", "messages_field", "id_field", "category_field"),
)
PROMPT_FIELDS = ("id", "category", "pair_id", "text")
DESIGN_FIELDS = ("frame", "filler", "turn")  # of a set that gives them
MODEL_FACTS = {"weights_sha256": "weights", "tokenizer_sha256": "tokenizer", "revision": "commit"}
MODEL_FACTS |= {"config_sha256": "config", "architecture": "class"}
MODEL_FACTS |= {n: n for n in ("n_layers", "n_heads", "dtype", "device")}
HALF_PRECISION = 2**-10  # between neighbouring float16 numbers below 2
IDENTICAL, CLOSE, DIFFERENT = "bit-identical", "equal within tolerance", "different"


class Repetition:
    """One repetition: what is repeated, its arguments and prompts, what changed, the verdict.

    load_prompts  function (prompt file or None, prompts per category) -> (prompts, notes)
    """

    def __init__(self, run: Run, parser, given, load_prompts):
        self.run = run
        self.args, self.notes = recorded_arguments(parser, run, given)
        self.prompts = recorded_prompts(run)
        left_out = run.config["prompts"].get("frames_left_out") or {}
        note = prompt_source_note(self.prompts, self.args, load_prompts, left_out)
        self.notes += [note] if note else []
        self.model_changes, self.comparison = [], None

    def announce(self):
        """Say what is repeated, and what is not as it was."""
        n, failed = len(self.prompts), len(self.run.config["prompts"]["failed"])
        print(f"repeat of {printable(self.run.path)}: {self.run.label}, {n} prompts")
        for note in self.notes:
            print(f"note: {note}")
        if failed:
            print(f"note: {failed} prompts failed in the first run")

    def check_model(self, facts):
        """Say what changed about the model, before it is run."""
        n_layers, n_heads = facts["n_layers"], facts["n_heads"]
        if (n_layers, n_heads) != (self.run.n_layers, self.run.n_heads):
            raise RunFailed(
                f"the run has {self.run.n_layers} layers x {self.run.n_heads} heads, the model "
                f"that is there now {n_layers} x {n_heads}; it is another model"
            )
        self.model_changes = list_changes("model", self.run.config["model"], facts, MODEL_FACTS)
        for line in self.model_changes:
            print(f"changed: {line}")

    def check_fed(self, tokenized):
        """Say whether the texts become the tokens that they became, before the model is run."""
        before = {row["id"]: row.get("token_ids") for row in self.run.prompts}
        other = [p.id for p in tokenized if before.get(p.id, p.token_ids) != p.token_ids]
        if other:
            line = f"{len(other)} of {len(tokenized)} prompts became other tokens, {other[0]} first"
            self.model_changes.append(line)
            print(f"changed: {line}")

    def compare(self, arrays, config):
        """repeat.json: the verdict over attention.npz, and everything known to have changed."""
        before = {name: getattr(self.run, name) for name in ARRAYS}
        before = {name: array for name, array in before.items() if array is not None}
        changed = self.model_changes + environment_changes(self.run.config, config)
        self.comparison = {
            "repeat_of": self.run.path.name,
            **compare_arrays(before, arrays, ROUNDING_TOLERANCE[config["model"]["dtype"]]),
            "changed": portable(changed),
            "notes": portable(self.notes),
        }
        return self.comparison

    def report_verdict(self):
        """Print the verdict and what may explain it; returns the exit code."""
        for line in self.comparison["changed"][len(self.model_changes) :]:
            print(f"changed: {line}")
        print("\n".join(describe_verdict(self.comparison)))
        return int(self.comparison["verdict"] == DIFFERENT)


def recorded_arguments(parser, run: Run, given):
    """(arguments of a run, notes): as its command line gave them, parsed again, changed by `given`.

    The model is that of the recorded commit. What is not recorded has its default, and a note.
    """
    where, model = f"--repeat {run.path}", run.config["model"]
    if run.config.get("script") != SCRIPT or not isinstance(run.config.get("arguments"), dict):
        raise UserError(f"{where}: was not written by {SCRIPT}; only its runs can be repeated")
    parser.prog = printable(run.path / "experiment_config.json")
    words, notes = recorded_words(parser, run)
    args = parser.parse_args(words)
    if args.trust_remote_code and not given.get("trust_remote_code"):
        raise UserError(
            f"{where}: the run used --trust_remote_code; read the model's code and give it again"
        )
    args.revision = model.get("revision") or args.revision
    from_hub = model.get("revision") or args.model_id.startswith("bundled:")
    was_folder = model.get("weights_sha256") and not from_hub
    if was_folder and "model_id" not in given and not Path(args.model_id).is_dir():
        raise UserError(
            f"{where}: its model was the folder {printable(args.model_id)}, which is not here; "
            "call it from where the run was made, or give --model_id FOLDER"
        )
    args.output_dir = str(run.path.parent)
    if "device" in given or "device_map" in given:
        args.device = args.device_map = None
    args.date = run.config["prompts"].get("date") or args.date
    args.template_text = (run.config["prompts"].get("chat_template") or {}).get("text")
    vars(args).update({flag: value for flag, value in given.items() if value is not None})
    if args.capture == "streaming" and args.raw != "none":
        raise UserError(f"--raw {args.raw} with {where}: it was streamed, so there are no patterns")
    return args, notes


def recorded_words(parser, run: Run):
    """(words, notes): the command line of a run, asking for what was done where that was chosen.

    `--capture auto` would choose by the memory that is free today, and a run that ran out of memory
    went on with smaller batches than it was asked for.
    """
    recorded, done = dict(run.config["arguments"]), run.config.get("capture") or {}
    if recorded.get("raw") is None and any(run.path.glob("raw_*_attn_pattern.npz")):
        recorded["raw"] = "patterns"  # what earlier versions saved unless told
    words, notes = [], []
    for flag, name in CHOSEN.items():
        if isinstance(done, dict) and done.get(name) is not None:
            recorded[flag] = done[name]
        else:
            notes.append(
                f"the run does not record the {name} of its capture: its --{flag} is taken"
            )
    actions = {action.dest: action for action in parser._actions}
    for flag, action in actions.items():
        value = recorded.get(flag)
        if flag in NOT_RECORDED:
            continue
        if flag not in recorded:
            default = repr(action.default)
            notes.append(f"the run does not record --{flag}: its default {default} is taken")
        elif action.nargs == 0:
            words += [f"--{flag}"] if value is True else []
        elif isinstance(value, list):  # of a flag that may be given several times
            words += [f"--{flag}={item}" for item in value]
        elif value is not None:
            # a path is recorded with ~ for the home folder
            is_path = flag in PATH_FLAGS and isinstance(value, str)
            words.append(f"--{flag}={os.path.expanduser(value) if is_path else value}")
    unknown = [printable(flag) for flag in recorded if flag not in actions]
    return words, notes + [f"the run records --{flag}, which is unknown here" for flag in unknown]


def recorded_prompts(run: Run):
    """The prompts of a run as they were fed, in order, those that failed included.

    The SHA-256 in the config proves them.
    """
    where, facts = f"--repeat {run.path}", run.config["prompts"]
    prompts = [_read_prompt(row) for row in run.prompts]
    try:
        for failed in sorted(facts["failed"], key=lambda item: item["index"]):
            prompts.insert(failed["index"], _read_prompt(failed))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: some prompts failed and the run does not hold their texts"
        ) from error
    if prompt_set_sha256(prompts) != facts.get("sha256"):
        raise UserError(
            f"{where}: the texts in prompts.jsonl are not those of its config; it was changed"
        )
    return prompts


def _read_prompt(row):
    """The Prompt of a row of prompts.jsonl; a run of schema 1 has no design fields."""
    design = {name: row[name] for name in DESIGN_FIELDS if name in row}
    return Prompt(*(row.get(name) for name in PROMPT_FIELDS), **design)


def prompt_source_note(prompts, args, load_prompts, left_out=()):
    """What a reader must know if the prompt file, or the built-in set, gives other prompts now."""
    try:
        there, _ = load_prompts(args.prompts, args.prompts_per_category)
    except UserError as error:
        what = str(error)
    else:
        if [prompt for prompt in there if prompt.frame not in left_out] == prompts:
            return None
        source = f"--prompts {printable(args.prompts)}" if args.prompts else "the built-in set"
        what = f"{source} has other prompts now"
    return f"{what}; the texts in prompts.jsonl are used"


def environment_changes(before, after):
    """What else changed between two configs: versions, code, processor, threads, batch size."""
    lines = []
    for part in ("packages", "git", "determinism"):
        old, new = before.get(part) or {}, after.get(part) or {}
        lines += list_changes(part, old, new, {name: name for name in sorted(set(old) | set(new))})
    sizes = [{"batch_size": batch_size_of(config)} for config in (before, after)]
    return lines + list_changes("argument", *sizes, {"batch_size": "batch_size"})


def batch_size_of(config):
    """Prompts in the largest batch of a run; of an older run, what --batch_size allowed."""
    return config.get("capture", {}).get("batch_size") or config["arguments"].get("batch_size")


def list_changes(what, before, after, names):
    """One line for every name (shown as names[name]) whose value differs between two dicts."""
    return [
        f"{what} {shown}: was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name, shown in names.items()
        if before.get(name) != after.get(name)
    ]


def _short(value):
    text = printable("not recorded" if value is None else value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def compare_arrays(before, after, tolerance):
    """{"verdict", "tolerance", "largest": place or None, "arrays": {name: finding}} of two runs.

    before, after  the ARRAYS of both; a run of schema 1 lacks some, which are not compared
    A finding has its own verdict; where values differ, how many do, and the largest difference.
    """
    labels = {"prompt": before["prompt_id"]}
    findings = {
        name: _compare_array(name, array, after[name], tolerance, labels)
        for name, array in before.items()
    }
    verdicts = {finding["verdict"] for finding in findings.values()}
    verdict = next((v for v in (DIFFERENT, CLOSE) if v in verdicts), IDENTICAL)
    places = [finding["largest"] for finding in findings.values() if finding.get("largest")]
    largest = max(places, key=lambda place: place["difference"], default=None)
    return {"verdict": verdict, "tolerance": tolerance, "largest": largest, "arrays": findings}


def _compare_array(name, a, b, tolerance, labels):
    if a.dtype.kind != b.dtype.kind or a.shape != b.shape:
        return {"verdict": DIFFERENT, "why": f"{a.dtype} {a.shape} became {b.dtype} {b.shape}"}
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return {"verdict": IDENTICAL}
    if a.dtype.kind != "f":
        why = "labels or token counts changed"
        return {"verdict": DIFFERENT, "n_different": int((a != b).sum()), "why": why}
    if a.dtype == np.float16:  # rounded when it was stored: half a last digit may flip
        tolerance = max(tolerance, HALF_PRECISION)
    gap = np.abs(a.astype(np.float64) - b)
    gap = np.where(np.isnan(a) != np.isnan(b), np.inf, np.nan_to_num(gap, nan=0.0, posinf=np.inf))
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    place = {
        axis if isinstance(axis, str) else "end": labels[axis][i] if axis in labels else int(i)
        for axis, i in zip(ARRAYS[name][1], index, strict=True)
    }
    values = {"was": float(a[index]), "is": float(b[index]), "difference": float(gap[index])}
    return {
        "verdict": CLOSE if gap.max() <= tolerance else DIFFERENT,
        "n_different": int((gap > 0).sum()),
        "n_beyond_tolerance": int((gap > tolerance).sum()),
        "n": int(gap.size),
        "largest": {"array": name, **place, **values},
    }


def describe_verdict(comparison):
    """The comparison in one line, and one more for every array that is different."""
    tolerance, lines = f"{comparison['tolerance']:g}", [f"attention.npz: {comparison['verdict']}"]
    if comparison["verdict"] == CLOSE:
        lines[0] += f" {tolerance}: largest difference {_place(comparison['largest'])}"
    for name, finding in comparison["arrays"].items():
        if finding["verdict"] == DIFFERENT and "largest" in finding:
            beyond = f"{finding['n_beyond_tolerance']} of {finding['n']} values beyond {tolerance}"
            lines.append(f"{name}: {beyond}; largest {_place(finding['largest'])}")
        elif finding["verdict"] == DIFFERENT:
            lines.append(f"{name}: {finding['why']}")
    return lines


def _place(largest):
    axes = ("prompt", "layer", "head", "query", "end")
    where = ", ".join(f"{axis} {largest[axis]}" for axis in axes if axis in largest)
    return printable(
        f"{largest['difference']:.3g} at {where} ({largest['was']:.6g}, now {largest['is']:.6g})"
    )
