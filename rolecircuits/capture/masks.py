"""Which keys a row sees, taken from the masks that the model itself builds.

Fields of a config say nothing reliable: some models ignore a `sliding_window` that they carry,
others keep their window under another name. So a short pass notes the mask function that every
layer is given (transformers.masking_utils builds masks from functions of query and key position),
and it is asked for as many rows as the texts have. Where a layer gets a mask of another make, the
rows of a text of that length are looked at instead: a key is hidden where all heads score it far
below what they score highest.

Keys that a row sees must be one stretch that ends with its own: full attention, sliding windows and
chunks (Llama 4) are. Axes: layer, query.
"""

import inspect
import math

import numpy as np
import torch
from transformers.masking_utils import eager_mask

from rolecircuits.capture.model_pass import (
    EAGER,
    INTERFACE,
    AttentionFunction,
    run_eager,
    run_interface,
)
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.models.source import errors_in_one_line

PATTERNS, ROWS = "role_patterns", "role_rows"  # names of our attention functions
HIDDEN = 500.0  # nats below a row's best score in every head: hidden, by whatever was added
CHECKED_ROWS = 64  # of a long text, about so many rows are looked at whole


def first_keys(loaded, n_query):
    """The first key that every row sees: [layer, query] int.

    raises  UserError where the keys that a row sees are not one stretch, or depend on the text
    """
    known = loaded.attention.get("first")
    if known is None or known.shape[1] < n_query:
        known = _read_rules(loaded, n_query) if can_stream(loaded) else _read_rows(loaded, n_query)
        loaded.attention["first"] = known
    return known[:, :n_query]


def visible_keys(loaded, n_query):
    """Keys that every row sees, a learned sink counted: [layer, query] int64."""
    seen = np.arange(1, n_query + 1) - first_keys(loaded, n_query)
    return seen + np.array(loaded.attention["sinks"], dtype=np.int64)[:, None]


def way(loaded):
    """INTERFACE where the model calls our attention function in every layer, else EAGER."""
    _look(loaded)
    return loaded.attention["way"]


def has_sinks(loaded):
    """True where heads of some layer have learned sinks, keys of their own that hold no value."""
    _look(loaded)
    return any(loaded.attention["sinks"])


def can_stream(loaded):
    """True where rows can be streamed: every layer takes our function with masks by position."""
    return why_not_streamed(loaded) is None


def asks_rules(loaded):
    """True where masks can be read for texts of any length without a pass over such a text."""
    return can_stream(loaded) and loaded.attention["any_length"]


def why_not_streamed(loaded):
    """The reason why rows of this model cannot be streamed, or None."""
    _look(loaded)
    return loaded.attention["not_streamed"]


def why_not_packed(loaded):
    """The reason why a batch of this model cannot be packed (packed.Packed), or None."""
    _look(loaded)
    return loaded.attention["not_packed"]


def _look(loaded):
    """Find out, once, how this model can be read: a whole pass over two tokens."""
    if "way" in loaded.attention:
        return
    with errors_in_one_line(loaded.facts["id"], "it does not run on text alone"):
        loaded.attention.update(_find_way(loaded))


def _find_way(loaded):
    """{"way", "sinks" [layer], "not_streamed", "not_packed", "rules" [layer], "any_length"} of a
    model.

    any_length  the rules answer for texts of any length; some hold tensors as long as their text
    """
    facts = {"way": EAGER, "sinks": [False] * loaded.n_layers}
    facts["not_streamed"] = "runs its own eager attention"
    follows = loaded.model._can_set_attn_implementation()
    calls = _note_calls(loaded, 2) if follows else []
    if not calls:
        run_eager(loaded, _any_text(2), lambda layer, scores: None, to_end=True)
    else:
        facts = {"way": INTERFACE, "sinks": [sinks is not None for _, sinks, _ in calls]}
        facts["not_streamed"] = None
        if any(rule is None for rule, _, _ in calls):
            facts["not_streamed"] = "builds masks of its own"
        elif any(bias is not None for _, _, bias in calls):
            facts["not_streamed"] = "adds a position bias to its scores"
        facts["rules"] = [rule for rule, _, _ in calls]
        device = next(loaded.model.parameters()).device
        facts["any_length"] = facts["not_streamed"] is None and _fits(facts["rules"], 3, device)
    facts["not_packed"] = _why_not_packed(loaded, facts, [sinks for _, sinks, _ in calls])
    return facts


def _why_not_packed(loaded, facts, sinks):
    """The reason why one row of tokens cannot stand for a batch of this model, or None."""
    if facts["not_streamed"] is not None:
        return facts["not_streamed"]
    if not facts["any_length"]:
        return "has masks made for one text"
    if any(scores is not None and scores.ndim == 4 for scores in sinks):
        return "has a sink score for every query"
    model = loaded.model
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if any(isinstance(part, torch.nn.Conv1d) for part in decoder.modules()):
        return "moves something between tokens by convolution"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "finds out positions itself"
    return None


def _fits(rules, n_query, device):
    """False where a rule cannot be asked for so many rows."""
    try:
        for rule in set(rules):
            first_of_rule(rule, n_query, device)
    except IndexError:
        return False
    return True


def _any_text(n_query):
    """(ids, mask) of a text of so many tokens, of which nothing is read but its masks."""
    ids = torch.arange(n_query)[None] % min(n_query, 50) + 3
    return ids, torch.ones_like(ids)


def _note_calls(loaded, n_query):
    """[(mask function or None, sinks, bias)] of every layer, from a pass whose outputs are zero; []
    where the model never calls the function.
    """
    noted, calls = {}, []

    def note_mask(batch_size, q_length, device="cpu", mask_function=None, **_):
        zero = torch.zeros((), device=device)
        noted[zero.data_ptr()] = (zero, mask_function)
        return zero.expand(batch_size, 1, q_length, q_length)  # takes no memory

    def attend(layer, call):
        found = noted.get(call.mask.data_ptr()) if isinstance(call.mask, torch.Tensor) else None
        calls.append((None if found is None else found[1], call.sinks, call.bias))
        n_heads = call.query.shape[1]
        if n_heads != loaded.n_heads:
            raise RunFailed(
                f"layer {layer} has {n_heads} heads, its config says {loaded.n_heads}; models "
                "whose layers differ in their heads are not measured"
            )
        repeated = n_heads // call.value.shape[1]
        return torch.zeros_like(call.value).repeat_interleave(repeated, dim=1)

    function = AttentionFunction(loaded.n_layers, attend, to_end=True)
    try:
        run_interface(loaded, _any_text(n_query), ROWS, function, note_mask)
    except RunFailed:
        if function.fired:
            raise
    return calls


def _read_rules(loaded, n_query):
    """`first_keys` from the mask function of every layer."""
    rules, tables = loaded.attention["rules"], {}
    device = next(loaded.model.parameters()).device
    if not loaded.attention["any_length"]:
        rules = [rule for rule, _, _ in _note_calls(loaded, n_query)]
    for rule in rules:
        if rule not in tables:
            tables[rule] = first_of_rule(rule, n_query, device)
    return np.stack([tables[rule] for rule in rules]).astype(np.int32)


def first_of_rule(rule, n_query, device="cpu"):
    """The first key that each row sees, by bisection: [query] int.

    rule    function (batch, head, query, key) -> bool, of index tensors that broadcast
    device  where the tensors are that it may hold
    """
    batch = head = torch.zeros((), dtype=torch.int64, device=device)
    query = torch.arange(n_query, device=device)
    low, high = torch.zeros_like(query), query.clone()  # the first one is in low..high
    for _ in range(max(1, math.ceil(math.log2(n_query + 1)))):
        middle = (low + high) // 2
        seen = rule(batch, head, query, middle)
        high = torch.where(seen, middle, high)
        low = torch.where(seen, low, (middle + 1).minimum(high))
    step = max(1, n_query // CHECKED_ROWS)
    some = torch.arange(n_query - 1, -1, -step, device=device)
    seen = rule(batch, head, some[:, None], query[None, :]).expand(len(some), n_query)
    first = high.cpu().numpy()
    one_stretch(seen.cpu().numpy(), first, some.cpu().numpy())
    return first


def one_stretch(seen, first, rows):
    """Refuse rows (positions) that do not see exactly the keys from `first` to their own.

    seen  [row, key] bool    first  [query]
    """
    key = np.arange(seen.shape[1])
    expected = (key <= rows[:, None]) & (key >= first[rows][:, None])
    if not np.array_equal(seen, expected):
        row = int(rows[np.argwhere(seen != expected)[0, 0]])
        raise UserError(
            f"query row {row} sees keys that are not one stretch up to its own; only causal "
            "attention, whole, in windows or in chunks, is measured"
        )


def hidden_keys(scores):
    """Keys that no head of a row sees: [prompt, query, key] bool of scores [prompt, head, query,
    key].
    """
    scores = scores.float()
    gap = scores.amax(dim=-1, keepdim=True) - scores
    return (gap > HIDDEN).all(dim=1)


def _read_rows(loaded, n_query):
    """`first_keys` from the scores of a text of so many tokens."""
    found = []

    def read(layer, scores):
        found.append(~hidden_keys(scores)[0].cpu().numpy())

    read_scores(loaded, _any_text(n_query), read)
    first = [seen.argmax(axis=-1) for seen in found]
    for seen, start in zip(found, first, strict=True):
        one_stretch(seen, start, np.arange(n_query))
    return np.stack(first)


def read_scores(loaded, batch, read, read_rows=None):
    """A pass in which read(layer, scores) gets the masked scores of every layer.

    scores     [prompt, head, query, key] in the model's dtype; a learned sink is not among them
    read_rows  function (layer, what `with_sinks` gives)
    """
    if way(loaded) == EAGER:

        def read_both(layer, scores):
            read(layer, scores)
            if read_rows is not None:
                read_rows(layer, with_sinks(scores, None))

        run_eager(loaded, batch, read_both)
        return

    def attend(layer, call):
        scores = masked_scores(call)
        read(layer, scores)
        rows = with_sinks(scores, call.sinks)
        if read_rows is not None:
            read_rows(layer, rows)
        return attention_output(call, rows)

    function = AttentionFunction(loaded.n_layers, attend)
    run_interface(loaded, batch, PATTERNS, function, eager_mask)


def masked_scores(call):
    """softcap(scale q k) + bias + mask in the model's dtype: [prompt, head, query, key]."""
    key = _all_heads(call.key, call.query)
    scores = torch.matmul(call.query, key.transpose(2, 3)) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if call.bias is not None:
        scores = scores + call.bias
    if call.mask is not None:
        mask = call.mask[..., : key.shape[-2]]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    return scores


def with_sinks(scores, sinks):
    """(pattern, sink): the softmax in float32 over keys and, where a head has one, its sink.

    pattern [prompt, head, query, key]    sink [prompt, head, query], None without learned sinks
    """
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32), None
    column = sink_column(sinks).to(scores.dtype).expand(*scores.shape[:-1], 1)
    rows = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=torch.float32)
    return rows[..., :-1], rows[..., -1]


def joined(rows):
    """What `with_sinks` gave as one pattern [prompt, head, query, key], a learned sink first."""
    pattern, sink = rows
    return pattern if sink is None else torch.cat([sink[..., None], pattern], dim=-1)


def sink_column(sinks):
    """Learned sink scores as [prompt or 1, head, query or 1, 1]."""
    return sinks if sinks.ndim == 4 else sinks.reshape(1, -1, 1, 1)


def attention_output(call, rows):
    """The layer's output [prompt, head, query, d] of what `with_sinks` gave."""
    value = _all_heads(call.value, call.query)
    return torch.matmul(rows[0].to(value.dtype), value)


def _all_heads(tensor, query):
    """Keys or values with one copy for every query head."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def note_windows(loaded, n_query):
    """Put into the model's facts what its masks show for texts of up to so many tokens.

    "sliding_windows", "chunk_sizes"  [layer], None where a layer has none
    "masks_read_for_tokens"           beyond these nothing is known yet
    """
    facts = loaded.facts
    if n_query <= facts.get("masks_read_for_tokens", 0):
        return
    sizes = [window_of(row) for row in first_keys(loaded, n_query)]
    facts["sliding_windows"] = [window for window, _ in sizes]
    facts["chunk_sizes"] = [chunk for _, chunk in sizes]
    facts["masks_read_for_tokens"] = n_query


def windows_of(facts):
    """[(window, chunk)] of every layer, from what `note_windows` put into a model's facts."""
    return list(zip(facts["sliding_windows"], facts["chunk_sizes"], strict=True))


def window_of(first):
    """(window, chunk) of one layer's first keys [query]: one of them, or (None, None)."""
    query = np.arange(len(first))
    if not first.any():
        return None, None
    start = int(np.flatnonzero(first)[0])
    if np.array_equal(first, np.maximum(query + 1 - start, 0)):
        return start, None
    if np.array_equal(first, query // start * start):
        return None, start
    raise UserError("rows see keys by a rule that is neither a window nor a chunk")
