"""Entropies and masses of attention while a model generates: exact, and a row per layer and head a
token is all that is ever held.

    with RoleMonitor(model, tokenizer) as monitor:
        model.generate(**inputs)
    monitor.texts[0].means(slice(n_prompt, None))      # of the generated tokens

The model's own attention function computes the output, whichever it is (sdpa, eager, flash); the
rows of the new queries are computed beside it, from the same queries, keys and mask, in float32. So
tokens are those that the model gives without a monitor. One sequence a row of the batch, greedy or
sampled: beams, which move between rows, are refused, and so are static caches.

    Trainer(..., callbacks=[RoleMonitor(model, tokenizer, prompts)])

records the prompts at every evaluation: monitor.evaluations holds a row a prompt.

Axes: prompt, layer, head, query, key.
"""

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.trainer_callback import TrainerCallback

from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.conversations import read_turns, tokenize_turns
from rolecircuits.capture.model_pass import call_of
from rolecircuits.capture.rows import NewRows, join_sink
from rolecircuits.capture.tokens import CODE, NO_SLOT
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models.architecture import check_architecture, dense_tokens, model_shape
from rolecircuits.models.load import ModelTokenizer
from rolecircuits.stats import entropy, moments
from rolecircuits.stats.indices import KINDS
from rolecircuits.stats.masses import SEGMENTS, uniform_segment_rows

ACTIVE = []  # the monitors that are entered
PARTS = len(SEGMENTS) + 1  # the slot is the last one


@dataclass(frozen=True)
class Recorded:
    """What was recorded of one text, prompt and answer; the last token generated was never fed.

    segments  [key] codes of stats.masses.SEGMENTS    slot  (start, stop), (-1, -1) without
    rows      [layer, head, query, 3 + part] as rows.NewRows gives them
    visible   [layer, query] keys that a row sees, a learned sink not counted
    """

    token_ids: list
    segments: np.ndarray
    slot: tuple
    rows: np.ndarray
    visible: np.ndarray
    learned_sinks: bool

    def arrays(self):
        """{"entropy", "entropy_sinkfree", "sink_mass", "slot_mass" [layer, head, query],
        "segment_mass" [layer, head, query, segment], "visible_keys" [layer, query],
        "segment_uniform" [layer, query, segment]}, as of a run.
        """
        visible = self.visible + int(self.learned_sinks)
        sink, log_sum, rest = (self.rows[..., i] for i in range(3))
        without = 0 if self.learned_sinks else 1  # row 0 sees nothing but key 0
        layers = [
            join_sink(*(sink[i], log_sum[i][:, without:], rest[i][:, without:]), visible[i])
            for i in range(len(visible))
        ]
        found = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
        # 1 - sink mass would be inexact beside a strong sink
        odds = (log_sum - sink.astype(np.float64)).clip(-700, 700)
        masses = np.nan_to_num(self.rows[..., 3:]) / (1 + np.exp(-odds))[..., None]
        if not self.learned_sinks:
            masses[:, :, 0] = 0.0
        masses[..., CODE["sink"]] += found["sink_mass"]
        masses = masses.astype(np.float32)
        in_slot = np.zeros(len(self.token_ids), bool)
        in_slot[slice(*self.slot) if self.slot != NO_SLOT else slice(0)] = True
        slot = masses[..., -1] + (found["sink_mass"] if in_slot[0] else 0)
        return found | {
            "visible_keys": visible,
            "slot_mass": slot if in_slot.any() else np.full_like(slot, np.nan),
            "segment_mass": masses[..., :-1],
            "segment_uniform": uniform_segment_rows(self.segments, visible),
        }

    def values(self):
        """`arrays` with the three kinds of entropy by their names, normalised as in every run."""
        arrays = self.arrays()
        visible = arrays["visible_keys"]
        keys = {"entropy": visible, "entropy_sinkfree": entropy.sinkfree_keys(visible)}
        normalised = (entropy.normalise_entropy(arrays[k], keys[k][:, None]) for k in keys)
        kinds = dict(zip(KINDS, (*normalised, arrays["entropy"]), strict=True))
        return kinds | {k: v for k, v in arrays.items() if not k.startswith("entropy")}

    def row_means(self):
        """{name: [query]} means over layers and heads: each kind, sink_mass, slot_mass, and each
        segment beside its value under uniform attention, NAME_null.
        """
        values = self.values()
        found = {name: _row_means(values[name]) for name in (*KINDS, "sink_mass", "slot_mass")}
        for code, name in enumerate(SEGMENTS[1:], 1):
            found[name] = _row_means(values["segment_mass"][..., code])
            found[f"{name}_null"] = values["segment_uniform"][..., code].mean(axis=0)
        return found

    def means(self, rows=slice(None)):
        """{name: number} the mean of `row_means` over these rows."""
        return {
            name: float(moments.defined_mean(values[rows]))
            for name, values in self.row_means().items()
        }


def _row_means(values):
    """Means over layers and heads of [layer, head, query]."""
    flat = values.astype(np.float64).reshape(-1, values.shape[-1])
    return moments.defined_mean(flat, axis=0)


class Texts:
    """The texts of one batch while they grow; all tensors are by place, padding included."""

    def __init__(self, ids, pads, n_real, segments, slots):
        self.pads, self.n_real, self.slots = pads, n_real, slots
        self.ids, self.rows, self.visible = ids[:, :0], [], []
        # numpy: a tensor made in inference mode could not be written to outside it
        self.parts = np.zeros((len(ids), 0, PARTS), np.float32)
        self.codes = np.zeros((len(ids), 0), int)
        self.learned_sinks = False
        self.extend(ids, segments)

    @property
    def length(self):
        """Places whose rows are recorded."""
        return sum(rows.shape[3] for rows in self.rows)

    def extend(self, ids, codes):
        """Tokens of a new pass, behind those before; codes [prompt, all tokens]."""
        start, n = self.ids.shape[1], codes.shape[1]
        self.ids = torch.cat([self.ids, ids], dim=1)
        same = self.codes.shape[1] <= n and np.array_equal(
            self.codes, codes[:, : self.codes.shape[1]]
        )
        if self.parts.shape[1] < n:  # room for twice as many, so that it is seldom made anew
            room = np.zeros((len(codes), 2 * n, PARTS), np.float32)
            room[:, :start] = self.parts[:, :start]
            self.parts = room
        first = start if same else 0
        self.codes = codes
        self.parts[:, first:n] = self._one_hot(first, n)

    def _one_hot(self, start, stop):
        """[prompt, key, part] of the keys from start to stop."""
        key = np.arange(start, stop)
        slots = np.array(self.slots)[:, :, None] + np.where(
            np.array(self.slots)[:, :1, None] >= 0, np.array(self.pads)[:, None, None], 0
        )
        in_slot = (key >= slots[:, 0]) & (key < slots[:, 1])
        in_segment = self.codes[:, start:stop, None] == np.arange(len(SEGMENTS))
        return np.concatenate([in_segment, in_slot[..., None]], axis=-1).astype(np.float32)

    def cut(self, length):
        """Forget the places from `length` on: a cache was cropped."""
        if length < self.length:
            rows, visible = torch.cat(self.rows, dim=3), torch.cat(self.visible, dim=2)
            self.rows, self.visible = [rows[:, :, :, :length]], [visible[:, :, :length]]
        self.ids, self.codes = self.ids[:, :length], self.codes[:, :length]

    def recorded(self):
        """[Recorded], one a row of the batch, without its padding."""
        length, found = self.length, []
        if not length:
            return found
        rows = torch.cat(self.rows, dim=3).cpu().numpy()
        visible = torch.cat(self.visible, dim=2).cpu().numpy()
        for i, pad in enumerate(self.pads):
            own = slice(pad, min(length, pad + self.n_real[i]))
            labels = self.ids[i, own].tolist(), self.codes[i, own], tuple(self.slots[i])
            parts = rows[i][:, :, own], visible[i][:, own]
            found.append(Recorded(*labels, *parts, self.learned_sinks))
        return found


class RoleMonitor(TrainerCallback):
    """Records every text that `model` is fed inside the block, as the module says.

    tokenizer  of transformers: tells system, user and assistant text in what it rendered by its
               chat template; any other text is user text, and what is generated assistant text
    prompts    TokenizedPrompts whose segments and slots are known, and that `on_evaluate` records
    """

    def __init__(self, model, tokenizer, prompts=()):
        own = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft
        config = copy.copy(own.config)
        config.architectures = [type(own).__name__]
        check_architecture(getattr(config, "_name_or_path", "") or config.model_type, config)
        if not own._can_set_attn_implementation():
            raise UserError(
                f"{type(own).__name__} runs its own eager attention, so its rows cannot be recorded"
            )
        self.model, self.base, self.n_layers = model, own.base_model, model_shape(config).n_layers
        self.dense, self.tokenizer = dense_tokens(config), tokenizer
        decoder = own.get_decoder() if hasattr(own, "get_decoder") else own.base_model
        self.attentions = {id(part) for part in decoder.modules()}
        self.known, self.prompts, self.evaluations = {}, list(prompts), []
        for prompt in self.prompts:
            self.expect(prompt.token_ids, prompt.segments, prompt.slot)
        self._all, self._pass = [], None

    def expect(self, token_ids, segments, slot):
        """Take segments and slot of a text from here, once it is fed as far as these tokens."""
        self.known[tuple(token_ids)] = (list(segments), slot)

    @property
    def texts(self):
        """[Recorded] of every text so far, in the order in which they were fed."""
        return [text for texts in self._all for text in texts.recorded()]

    def clear(self):
        """Forget what was recorded."""
        self._all = []

    def __enter__(self):
        self._handles = [
            self.base.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.base.register_forward_hook(self._finish),
        ]
        if not ACTIVE:
            _watch_attention()
        ACTIVE.append(self)
        return self

    def __exit__(self, *_):
        ACTIVE.remove(self)
        if not ACTIVE:
            _leave_attention()
        for handle in self._handles:
            handle.remove()
        self._pass = None

    def _begin(self, _, args, kwargs):
        """Before a forward pass: which tokens are new, and what they belong to."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError("the model is fed embeddings, not tokens, so rows are not recorded")
        cache, ids = kwargs.get("past_key_values"), ids.detach().cpu()
        start = 0 if cache is None else int(cache.get_seq_length())
        total = start + ids.shape[1]
        if self.dense is not None and total > self.dense:
            raise UserError(
                f"beyond {self.dense} tokens this model's sparse attention chooses the keys that a "
                "row sees, which is not recorded"
            )
        pads, n_real, real = _padding(kwargs.get("attention_mask"), ids, total)
        texts = self._all[-1] if self._all else None
        again = texts is not None and start == 0 and cache is None and _is_longer(ids, texts)
        if texts is None or (start == 0 and not again) or len(texts.ids) != len(ids):
            if start:
                raise UserError("the cache holds tokens that were fed before the monitor began")
            texts = Texts(ids, pads, n_real, *self._places(ids, pads))
            self._all.append(texts)
        else:
            if start > texts.length:
                raise UserError("the cache holds tokens that were fed before the monitor began")
            texts.cut(start)
            texts.n_real = n_real
            whole = torch.cat([texts.ids, ids], dim=1)
            texts.extend(ids, self._continued(texts, whole, again))
        parts = torch.from_numpy(texts.parts[:, :total])
        self._pass = texts, NewRows(start, torch.tensor(pads), real[:, start:], parts)

    def _attend(self, module, call, window):
        """The attention of one layer has run."""
        if self._pass is None or id(module) not in self.attentions:
            return
        texts, new = self._pass
        layer, named = len(new.visible), getattr(module, "layer_idx", None)
        if layer >= self.n_layers or named not in (layer, None):
            raise RunFailed(
                f"attention number {layer} of the pass is that of layer {named}; attention must "
                f"run once in each of {self.n_layers} layers, in order"
            )
        texts.learned_sinks = texts.learned_sinks or call.sinks is not None
        new.add(call, window)

    def _finish(self, *_):
        """After a forward pass."""
        (texts, new), self._pass = self._pass, None
        if len(new.visible) != self.n_layers:
            raise RunFailed(
                f"attention ran {len(new.visible)} times, not once in {self.n_layers} layers"
            )
        rows, visible = new.finish()
        texts.rows.append(rows)
        texts.visible.append(visible)

    def _places(self, ids, pads):
        """(segments [prompt, key], slots [prompt, 2]) of the texts of a new batch."""
        found = [self._place(row[pad:].tolist()) for row, pad in zip(ids, pads, strict=True)]
        codes = [[CODE["template"]] * pad + own for pad, (own, _) in zip(pads, found, strict=True)]
        return np.array(codes), [slot for _, slot in found]

    def _place(self, ids):
        """(segment codes, slot) of the tokens of one text."""
        known = self.known.get(tuple(ids))
        if known is not None:
            return known
        codes = self._read_template(ids)
        return codes or [CODE["sink"], *[CODE["user_text"]] * (len(ids) - 1)], NO_SLOT

    def _continued(self, texts, ids, again):
        """Segments [prompt, key] of texts that go on: known, of a conversation, or what is said."""
        n_new = ids.shape[1] - texts.codes.shape[1]
        said = np.full((len(ids), n_new), CODE["assistant_text"])
        codes = np.concatenate([texts.codes, said], axis=1)
        for i, pad in enumerate(texts.pads):
            own = ids[i, pad:].tolist() if self.known or n_new > 1 else []
            known = self.known.get(tuple(own), (None, None))[0]
            if known is None and n_new > 1 and not again:
                known = self._read_template(own)
                if known is None:
                    codes[i, -n_new:] = CODE["user_text"]
            if known is not None:
                codes[i, pad:] = known
        return codes

    def _read_template(self, ids):
        """Segment codes of a conversation that the tokenizer's chat template rendered, or None."""
        hf = getattr(self.tokenizer, "hf", self.tokenizer)
        if not getattr(hf, "chat_template", None) or not hf.is_fast:
            return None
        tokenizer = ModelTokenizer(hf, False, None, max(ids) + 1)
        try:
            template = Template(tokenizer, PromptFormat("chat"))
            text = hf.decode(ids, clean_up_tokenization_spaces=False)
            turns = read_turns(text, template)
            if turns is None:
                return None
            fed = tokenize_turns(turns, tokenizer, template, "text", ids[0], header=True)
        except UserError:  # no conversation of this template: its text is told apart no further
            return None
        shift = len(ids) - len(fed.token_ids)
        if shift or fed.token_ids != ids:
            return None
        return list(fed.segments)

    def on_evaluate(self, args, state, control, **_):
        """Record the prompts with the model as it is now: a row a prompt in `evaluations`."""
        kept, training = self._all, [part for part in self.model.modules() if part.training]
        self.model.eval()
        try:
            self._all = []
            with self, torch.no_grad():
                device = next(self.model.parameters()).device
                for prompt in self.prompts:
                    ids = torch.tensor([prompt.token_ids], device=device)
                    self.model(input_ids=ids, use_cache=False)
            for prompt, text in zip(self.prompts, self.texts, strict=True):
                row = {"step": state.global_step, "id": prompt.id, "category": prompt.category}
                self.evaluations.append(row | text.means(slice(*prompt.span)))
        finally:
            self._all = kept
            for part in training:  # a part that was frozen in eval mode stays so
                part.training = True


def _is_longer(ids, texts):
    """Whether a batch without a cache is the one before and one token more."""
    n = texts.ids.shape[1]
    same = ids.shape == (len(texts.ids), n + 1)
    return same and bool((ids[:, :n] == texts.ids).all())


def _padding(mask, ids, total):
    """(padding ahead of each text, tokens of each text, real [prompt, total] bool).

    mask  [prompt, total] of padding as the model is given it; another kind says nothing of it
    """
    real = np.ones((len(ids), total), bool)
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] == total:
        real = mask.detach().cpu().numpy().astype(bool)
    pads, n_real = real.argmax(axis=1), real.sum(axis=1)
    key = np.arange(total)
    stretch = (key >= pads[:, None]) & (key < (pads + n_real)[:, None])
    if not np.array_equal(real, stretch):
        raise UserError("a text is padded inside, so its rows are not recorded")
    return pads.tolist(), n_real.tolist(), torch.as_tensor(real)


def _watch_attention():
    """Let every attention function be followed by the monitors, and no cache reorder its rows."""
    own = AttentionInterface.get_interface

    def get_interface(interface, *args, **kwargs):
        return partial(_attend_watched, own(interface, *args, **kwargs))

    OWN["get_interface"], OWN["reorder_cache"] = own, Cache.reorder_cache
    AttentionInterface.get_interface, Cache.reorder_cache = get_interface, _refuse_beams


OWN = {}  # what `_watch_attention` has replaced


def _leave_attention():
    AttentionInterface.get_interface = OWN.pop("get_interface")
    Cache.reorder_cache = OWN.pop("reorder_cache")


def _attend_watched(function, module, query, key, value, attention_mask=None, **given):
    """The model's own attention, unchanged; then the monitors look at what it was given."""
    out = function(module, query, key, value, attention_mask, **given)
    with torch.no_grad():
        call = call_of(query, key, value, attention_mask, given)
        for monitor in ACTIVE:
            monitor._attend(module, call, given.get("sliding_window"))
    return out


def _refuse_beams(*_):
    raise UserError("beams move between the rows of a batch; record greedy or sampled answers")
