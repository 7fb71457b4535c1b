"""The checks of models_table.py: the project's functions against plain Hugging Face.

    found = check_row("gpt2")        {"class": ..., "plain": cell, "capture": cell, ...}
    a cell is {"verdict", "why", "gap"}, as models_table.py describes them

The reference takes nothing from the project: its rows are those that the model returns with eager
attention, every text alone and unpadded, reduced here in float64.
"""

import re
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import architectures
import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode

from rolecircuits.capture.attention import capture_patterns, capture_streaming
from rolecircuits.capture.generation import generate_greedily
from rolecircuits.capture.instrument import load_model
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import bench
from rolecircuits.edits.plan import parse_entries
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed, UserError, one_line
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, Setting

CHECKS = "capture streaming heads patterns generation bfloat16 float16".split()
LONG = (
    "The bridge over the river was built by a mason who had never seen the sea, and every stone "
    "of it was cut by hand from the hill behind the town. In spring the water rises to the third "
    "arch and the children count the days until it falls again. Nobody knows who carved the face "
    "that looks upstream, or why it smiles, but the fishermen touch it before they push off, and "
    "so do the brides, and the judge on the first day of his office. It has two eyes and no ears."
)
TEXTS = ("Who is it?", "How tall is the tower by the river?", "Why do you ask me that now", LONG)
PROMPTS = [Prompt(f"text_{i}", "neutral", -1, text) for i, text in enumerate(TEXTS)]
GAP = 1e-5
FINAL_ROW_GAP = 6e-4  # final_row is stored in float16
LOGIT_GAP = 1e-4
SHORT_MAX, SHORT_MEAN = 0.3, 0.02
NEW_TOKENS = 8
PROJECTIONS = (
    "o_proj out_proj c_proj dense wo Wo out_lin output.dense o out o_b_proj resid_proj "
    "attention_out out_project project_o linear_out self_attention.dense"
).split()


class Unknown(Exception):
    """There is no reference to compare with; the message says why."""


class NotCausal(Exception):
    """Plain Hugging Face shows that the layers do not have one causal pattern each."""


def load_plain(row, folder, dtype="float32"):
    """The plain Hugging Face model of a row's folder."""
    kind = getattr(transformers, row.model_class)
    return kind.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()


def run_plain(model, ids, **options):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False, **options)


def eager_modules(model):
    """The modules of code in which the model's eager attention function stands."""
    files = {type(module).__module__ for module in model.modules()}
    found = [sys.modules[name] for name in sorted(files)]
    return [code for code in found if hasattr(code, "eager_attention_forward")]


@contextmanager
def eager_replaced(model, wrap):
    """Inside the block, the model's eager attention is wrap(eager)."""
    found = [(code, code.eager_attention_forward) for code in eager_modules(model)]
    try:
        for code, eager in found:
            code.eager_attention_forward = partial(wrap, eager)
        yield
    finally:
        for code, eager in found:
            code.eager_attention_forward = eager


class LogSums(TorchFunctionMode):
    """Collects what torch.logsumexp gives inside the block: [layer] of [prompt, head, query]."""

    def __enter__(self):
        self.found = []
        super().__enter__()
        return self.found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.logsumexp:
            self.found.append(out)
        return out


def with_sinks(model, patterns, log_sums):
    """The same patterns, less what learned sinks take, where a model returns its rows without them
    and multiplies the output by sigmoid(log-sum-exp - sink) (granite_swa).
    """
    sinks = [part.sinks for part in model.modules() if getattr(part, "sinks", None) is not None]
    if not len(sinks) == len(log_sums) == len(patterns):
        return patterns
    left = [
        torch.sigmoid(log_sum - sink.detach().view(1, -1, 1))[..., None]
        for log_sum, sink in zip(log_sums, sinks, strict=True)
    ]
    return [pattern * part for pattern, part in zip(patterns, left, strict=True)]


def plain_patterns(model, ids):
    """The patterns of every layer, [layer] of [head, query, key] float64.

    raises  Unknown where it gives none, NotCausal where that is not one causal pattern a layer
    """
    recorded = []

    def record(eager, module, *args, **kwargs):
        out, weights = eager(module, *args, **kwargs)
        recorded.append(weights)
        return out, weights

    try:
        with eager_replaced(model, record), LogSums() as log_sums:
            given = getattr(run_plain(model, ids, output_attentions=True), "attentions", None)
    except Exception as error:  # whatever plain Hugging Face fails with is an answer
        said = f"{type(error).__name__} {one_line(error, 120)}"
        raise Unknown(f"plain Hugging Face fails: {said}") from error
    found = [w for w in (given or recorded) if w is not None]
    config = model.config.get_text_config()
    n_layers = getattr(config, "decoder_layers", config.num_hidden_layers)
    if not found:
        raise Unknown("plain Hugging Face returns no patterns")
    with torch.inference_mode():
        found = with_sinks(model, found, log_sums)
    if len(found) != n_layers:
        raise NotCausal(f"plain Hugging Face gives {len(found)} patterns for {n_layers} layers")
    for layer, pattern in enumerate(found):
        if pattern.ndim != 4 or pattern.shape[2:] != (len(ids), len(ids)):
            raise NotCausal(f"plain: layer {layer}: its pattern is {tuple(pattern.shape)}")
        if torch.triu(pattern[0], 1).abs().max() > 0:
            raise NotCausal(f"plain: layer {layer} sees later tokens")
        if pattern.min() < 0 or pattern.sum(-1).max() > 1.02:
            raise NotCausal(f"plain: layer {layer}: its rows are not probabilities")
    return [pattern[0].double().numpy() for pattern in found]


def xlogx(p):
    return p * np.log(np.where(p > 0, p, 1.0))


def reduce_rows(pattern, has_sink):
    """What the project must say of a pattern [head, query, key], computed here.

    has_sink  the rows lack the mass of a learned sink: it is a key of its own
    """
    if has_sink:
        sink, rest = 1 - pattern.sum(-1), pattern
        visible = (pattern > 0).sum(-1).max(0) + 1
    else:
        pattern = pattern / pattern.sum(-1, keepdims=True)
        sink, rest = pattern[..., 0], pattern[..., 1:]
        visible = (pattern > 0).sum(-1).max(0)
    left = rest.sum(-1, keepdims=True)
    kept = np.divide(rest, left, out=np.zeros_like(rest), where=left > 0)
    defined = (left[..., 0] > 1e-6) & ((rest > 0).sum(-1) > 1)
    return {
        "entropy": -xlogx(rest).sum(-1) - xlogx(np.maximum(sink, 0)),
        "entropy_sinkfree": np.where(defined, -xlogx(kept).sum(-1), np.nan),
        "sink_mass": sink,
        "final_row": pattern[:, -1],
        "visible_keys": visible,
    }


def compare_arrays(arrays, patterns, sinks):
    """(largest gap, mean gap of the entropies, what is wrong or "") of a Capture's arrays.

    patterns  [prompt][layer] of the reference    sinks  [layer] whether it has learned sinks
    """
    worst, where, means, wrong = 0.0, "", [], ""
    for p, layers in enumerate(patterns):
        for layer, pattern in enumerate(layers):
            n = pattern.shape[-1]
            expected = reduce_rows(pattern, sinks[layer])
            seen = arrays["visible_keys"]
            seen = seen[p, layer, :n] if seen.ndim == 3 else seen[layer, :n]
            if not np.array_equal(seen, expected["visible_keys"]):
                bad = int(np.flatnonzero(seen != expected["visible_keys"])[0])
                wrong = wrong or (
                    f"layer {layer} row {bad}: {seen[bad]} visible keys, the model gives weight to "
                    f"{expected['visible_keys'][bad]}"
                )
            for name in ("entropy", "entropy_sinkfree", "sink_mass", "final_row"):
                got = arrays[name][p, layer, :, :n].astype(np.float64)
                if got.shape != expected[name].shape:
                    return np.inf, np.inf, f"layer {layer}: {name} has shape {got.shape}"
                gaps = np.abs(got - expected[name])[~np.isnan(expected[name])]
                gap = float(gaps.max()) if gaps.size else 0.0
                if np.isnan(gap):
                    return np.inf, np.inf, f"layer {layer}: {name} is NaN where it is defined"
                if name == "entropy":
                    means.append(gaps.mean())
                if name == "final_row":
                    gap *= GAP / FINAL_ROW_GAP
                if gap > worst:
                    worst, where = gap, f"{name} of layer {layer}, text {p}"
    return worst, float(np.mean(means)), wrong or where


def cell(verdict, why="", gap=None):
    return {"verdict": verdict, "why": why, "gap": gap}


def judged(check, *args):
    """The cell of a check: what it returns, or what its error means."""
    try:
        return check(*args)
    except (UserError, RunFailed) as error:
        kind = "" if isinstance(error, UserError) else "after loading: "
        return cell("refused", kind + re.sub(r"--model_id \S+: ", "", one_line(error)))
    except Unknown as error:
        return cell("untested", one_line(error))
    except NotCausal as error:
        return cell("WRONG", f"measured, although {one_line(error)}")
    except Exception as error:  # a crash is a cell of the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {one_line(error, 160)}"
        return cell("CRASH", f"{said} ({Path(place.filename).name}:{place.lineno})")


class Row:
    """One architecture under test: its folder, and what several checks share."""

    def __init__(self, row, folder):
        self.row, self.folder = row, folder
        self.spec = ModelSpec(str(folder), device="cpu")
        self.loaded = self.tokenized = self.reference = self.plain = None
        self.plain_says, self.not_causal = "", False

    def open(self):
        self.loaded = load_model(self.spec)
        self.tokenized = tokenize_prompts(PROMPTS, self.loaded.tokenizer)
        return cell("yes")

    def ids(self):
        """Token ids of the texts: as the project feeds them, else of the tokenizer alone."""
        if self.tokenized is not None:
            return [prompt.token_ids for prompt in self.tokenized]
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        return [[1, *tokenizer(text, add_special_tokens=False).input_ids] for text in TEXTS]

    def look_at_plain(self):
        """Cell that says whether plain Hugging Face gives causal rows."""
        try:
            self.plain = load_plain(self.row, self.folder)
            self.reference = [plain_patterns(self.plain, ids) for ids in self.ids()]
        except NotCausal as error:
            self.plain_says, self.not_causal = str(error), True
        except Unknown as error:
            self.plain_says = str(error)
        except Exception as error:  # whatever plain Hugging Face fails with is an answer
            self.plain_says = f"plain Hugging Face does not load it: {one_line(error, 120)}"
        if self.reference is None:
            return cell("untested", self.plain_says)
        sums = [
            min(layers[i].sum(-1).min() for layers in self.reference)
            for i in range(len(self.reference[0]))
        ]
        self.sinks = [bool(total < 1 - 1e-4) for total in sums]
        return cell("yes", "learned sinks" if any(self.sinks) else "")

    def compared(self, arrays, reference):
        worst, mean, where = compare_arrays(arrays, reference, self.sinks)
        if where.endswith("gives weight to") or "visible keys" in where:
            return cell("WRONG", where, worst)
        return cell("yes" if worst <= GAP else "WRONG", "" if worst <= GAP else where, worst)

    def need(self):
        """What was measured needs the reference; a model without causal rows must be refused."""
        if self.reference is None:
            raise (NotCausal if self.not_causal else Unknown)(self.plain_says)

    def capture(self):
        arrays = capture_patterns(self.loaded, self.tokenized).arrays
        self.need()
        return self.compared(arrays, self.reference)

    def streaming(self):
        arrays = capture_streaming(self.loaded, self.tokenized).arrays
        self.need()
        return self.compared(arrays, self.reference)

    def short(self, dtype):
        """A short dtype: rows against those of the model in that dtype, which it rounds.

        Models with learned sinks also round scores before their softmax, and go on with other
        residuals, so only the mean is judged there.
        """
        loaded = load_model(ModelSpec(str(self.folder), dtype=dtype, device="cpu"))
        arrays = capture_patterns(loaded, self.tokenized).arrays
        self.need()
        plain = load_plain(self.row, self.folder, dtype)
        reference = [plain_patterns(plain, ids) for ids in self.ids()]
        gaps = []
        for p, layers in enumerate(reference):
            for layer, pattern in enumerate(layers):
                expected = reduce_rows(pattern, self.sinks[layer])["entropy"]
                gaps.append(abs(arrays["entropy"][p, layer, :, : len(pattern[0])] - expected))
        worst, mean = max(g.max() for g in gaps), np.concatenate([g.ravel() for g in gaps]).mean()
        right = mean <= SHORT_MEAN and (worst <= SHORT_MAX or any(self.sinks))
        why = "" if right else f"entropies differ by {worst:.2g}, {mean:.2g} on average"
        return cell("yes" if right else "WRONG", why, float(worst))

    def edited(self, items):
        """[logits [prompt, vocabulary]] of every entry of a plan."""
        entries = parse_entries(items, "plan")
        work = bench.Bench(self.loaded, PROMPTS, entries, Setting(self.spec, PromptFormat()))
        return [work.capture(entry).logits for entry in entries]

    def plain_logits(self, prepare=None):
        """Logits of every text's last token [prompt, vocabulary], with hooks of `prepare`."""
        handles = [] if prepare is None else prepare()
        try:
            return np.stack([run_plain(self.plain, i).logits[0, -1].numpy() for i in self.ids()])
        finally:
            for handle in handles:
                handle.remove()

    def heads(self):
        n_layers, n_heads = self.loaded.n_layers, self.loaded.n_heads
        chosen = [(layer, layer % n_heads) for layer in range(n_layers)]
        found = self.edited([head_entry(layer, head) for layer, head in chosen])
        self.need()
        attentions = output_projections(self.plain, n_layers)
        worst, changed, clean = 0.0, [], self.plain_logits()
        for (layer, head), logits in zip(chosen, found, strict=True):
            n = self.reference[0][layer].shape[0]
            expected = self.plain_logits(lambda at=attentions[layer], h=head, n=n: zeroed(at, h, n))
            worst = max(worst, float(np.abs(logits - expected).max()))
            changed.append(float(np.abs(expected - clean).max()))
        if min(changed) < 10 * LOGIT_GAP:
            return cell("untested", "zeroed columns change nothing", worst)
        why = "" if worst <= LOGIT_GAP else f"logits differ by {worst:.2g} from zeroed columns"
        return cell("yes" if worst <= LOGIT_GAP else "WRONG", why, worst)

    def patterns(self):
        layer = self.loaded.n_layers - 2 if self.loaded.n_layers > 1 else 0
        logits = self.edited([pattern_entry(layer)])[0]
        self.need()
        clean = self.plain_logits()
        if np.abs(logits - clean).max() < 10 * LOGIT_GAP:
            return cell("WRONG", "the edit leaves the logits as they were", 0.0)
        expected = self.uniform_logits(layer)
        gap = float(np.abs(logits - expected).max())
        why = "" if gap <= LOGIT_GAP else f"logits differ by {gap:.2g} from the uniform pattern's"
        return cell("yes" if gap <= LOGIT_GAP else "WRONG", why, gap)

    def uniform_logits(self, layer):
        if self.sinks[layer]:
            raise Unknown("logits change; with a learned sink there is no reference")
        if not eager_modules(self.plain):
            raise Unknown("logits change; its eager attention cannot be replaced for a reference")
        calls = []

        def uniform(eager, module, query, key, value, *args, **kwargs):
            out, weights = eager(module, query, key, value, *args, **kwargs)
            calls.append(module)
            if len(calls) % self.loaded.n_layers != (layer + 1) % self.loaded.n_layers:
                return out, weights
            flat = (weights > 0).to(weights.dtype)
            flat = flat / flat.sum(-1, keepdim=True)
            value = value.repeat_interleave(flat.shape[1] // value.shape[1], dim=1)
            return (flat @ value).transpose(1, 2).contiguous(), flat

        with eager_replaced(self.plain, uniform):
            logits = self.plain_logits()
        if len(calls) != self.loaded.n_layers * len(PROMPTS):
            raise Unknown("logits change; its eager attention cannot be replaced for a reference")
        return logits

    def generation(self):
        answers = generate_greedily(self.loaded, self.tokenized, NEW_TOKENS)
        try:
            plain = self.plain or load_plain(self.row, self.folder)
            expected = [generate_plain(plain, ids) for ids in self.ids()]
        except Exception as error:  # see plain_patterns
            raise Unknown(f"generate() fails: {one_line(error, 120)}") from error
        if answers == expected:
            return cell("yes")
        if answers == [continue_plain(plain, ids) for ids in self.ids()]:
            return cell("yes", "as repeated forward passes; generate() feeds other positions")
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        return cell("WRONG", f"{same} of {len(answers)} answers are those of generate()")


def continue_plain(model, ids):
    """Greedy tokens by whole forward passes, without a cache."""
    stop, grown = model.generation_config.eos_token_id, list(ids)
    for _ in range(NEW_TOKENS):
        grown.append(int(run_plain(model, grown).logits[0, -1].argmax()))
        if grown[-1] == stop:
            break
    return grown[len(ids) :]


def generate_plain(model, ids):
    """Greedy tokens of generate(), without what a generation config adds (forced tokens, say)."""
    given = torch.tensor([ids])
    stop = model.generation_config.eos_token_id
    greedy = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stop, pad_token_id=2
    )
    model.generation_config = transformers.GenerationConfig()
    with torch.inference_mode():
        out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=greedy)
    model.generation_config = greedy
    return out[0, len(ids) :].tolist()


def head_entry(layer, head):
    return {"type": "head", "layer": layer, "head": head, "method": "zero_out"}


def pattern_entry(layer):
    return {"type": "pattern", "layer": layer, "head": None, "method": "uniform"}


def output_projections(model, n_layers):
    """The output projection of every layer's attention, in order.

    raises  Unknown where they are not found by name
    """
    found = []
    for name, module in model.named_modules():
        own = type(module).__name__.lower()
        if "attention" not in own and "attn" not in own:
            continue
        if any(part in name for part in ("vision", "audio", "visual", "image", "tower", "cross")):
            continue
        for part in PROJECTIONS:
            inner = module
            for step in part.split("."):
                inner = getattr(inner, step, None)
            if isinstance(inner, torch.nn.Module) and getattr(inner, "weight", None) is not None:
                if inner not in found:
                    found.append(inner)
                break
    if len(found) != n_layers:
        raise Unknown(f"{len(found)} output projections found for {n_layers} layers")
    return found


def zeroed(projection, head, n_heads):
    """[handle] of a hook that zeroes a head's columns of what enters the projection."""

    def hook(module, args):
        x = args[0].clone()
        if x.shape[-1] % n_heads:
            raise Unknown(f"{x.shape[-1]} columns for {n_heads} heads")
        d = x.shape[-1] // n_heads
        x[..., head * d : (head + 1) * d] = 0
        return (x, *args[1:])

    return [projection.register_forward_pre_hook(hook)]


def forbid_installers():
    """From here on, a process that would install something is an error."""
    start = subprocess.Popen.__init__

    def guarded(self, args, *more, **kwargs):
        words = [str(a) for a in ([args] if isinstance(args, (str, bytes)) else args)]
        if any(word.split("/")[-1].startswith(("pip", "uv")) for word in words):
            raise RuntimeError(f"an installer was started: {' '.join(words)}")
        start(self, args, *more, **kwargs)

    subprocess.Popen.__init__ = guarded


def check_row(name, checks=CHECKS):
    """{"class", "plain", check: cell} of a row."""
    row = architectures.rows()[name]
    found = {"class": row.model_class}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        try:
            architectures.save_tiny(row, folder)
        except Exception as error:  # what cannot be built is a row of the table
            said = f"no tiny model: {type(error).__name__} {one_line(error, 160)}"
            found["plain"] = cell("untested", said)
            return found | {check: cell("untested", said) for check in checks}
        test = Row(row, folder)
        opened = judged(test.open)
        found["plain"] = judged(test.look_at_plain)
        if opened["verdict"] != "yes":
            return found | dict.fromkeys(checks, opened)
        for check in checks:
            method = getattr(test, check, None)
            found[check] = judged(method) if method else judged(test.short, check)
    return found
