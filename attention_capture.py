"""Run prompts through a model and reduce every attention pattern to arrays, layer by layer, inside the hook.

    tokenise (raw text or chat template) -> batches of similar length, padded right, always with the attention mask
    -> one forward pass a batch -> entropies, sink mass, final-query masses; patterns themselves only if asked for

Right padding with a mask gives patterns identical to unpadded prompts; left padding without a mask is silently wrong.
In bfloat16 and float16 the model rounds the softmax before hook_pattern, which moves entropies by up to 0.045 nats, so
there the pattern is the float32 softmax of hook_attn_scores.

Axes: prompt, layer, head, query, key.
"""

import contextlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jinja2.exceptions import TemplateError

from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.stats import entropy
from streaming_attention import stream_layers

ABOVE_DIAGONAL_TOLERANCE = 1e-6
# A chat template is a program of the model's maker; it may divide by zero or call itself without end.
TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model sees it; `span` is the first and one-past-last token of the prompt's own text."""

    id: str
    category: str
    pair_id: int
    text: str
    rendered: str
    token_ids: list
    token_strings: list
    span: tuple


def tokenize_prompts(prompts, tokenizer, prompt_format="raw", system_prompt=None, bos="auto"):
    """TokenizedPrompts of `prompts` for a ModelTokenizer.

    raw   the text alone, after the BOS token if bos says so (auto: as TransformerLens does for this model)
    chat  the model's own chat template with the generation prompt, tokenised once; the span from the offsets
    """
    hf = tokenizer.hf
    if bos == "always" and hf.bos_token_id is None:
        raise UserError("--bos always: this tokenizer has no BOS token")
    with_bos = bos == "always" or (bos == "auto" and tokenizer.prepends_bos and hf.bos_token_id is not None)
    check_special_tokens(prompts, hf)
    if prompt_format == "chat":
        if not hf.chat_template:
            raise UserError("--prompt_format chat: this model has no chat template; use --prompt_format raw")
        tokenized = [_tokenize_chat(prompt, hf, system_prompt) for prompt in prompts]
    else:
        tokenized = [_tokenize_raw(prompt, hf, with_bos) for prompt in prompts]
    for prompt in tokenized:
        if len(prompt.token_ids) > tokenizer.context:
            raise UserError(
                f"prompt {prompt.id} has {len(prompt.token_ids)} tokens, the model's context holds {tokenizer.context}; "
                "it is not truncated"
            )
        tokenizer.check_ids(prompt.token_ids, f"prompt {prompt.id}")
        if prompt.span[0] == prompt.span[1]:
            raise UserError(f"prompt {prompt.id} {printable(prompt.text)!r} has no tokens of its own")
    return tokenized


def check_special_tokens(prompts, hf):
    """Refuse prompts that contain the text of a special token, which would be read as that token."""
    specials = [token for token in hf.all_special_tokens if token.strip()]
    specials += [str(token) for token in hf.added_tokens_decoder.values() if token.special]
    for prompt in prompts:
        for token in specials:
            if token in prompt.text:
                raise UserError(f"prompt {prompt.id} contains the special token {printable(token)!r}; take it out")


def _tokenize_raw(prompt, hf, with_bos):
    ids = hf(prompt.text, add_special_tokens=False).input_ids
    ids = [hf.bos_token_id, *ids] if with_bos else list(ids)
    return TokenizedPrompt(
        prompt.id,
        prompt.category,
        prompt.pair_id,
        prompt.text,
        prompt.text,
        ids,
        hf.convert_ids_to_tokens(ids),
        (int(with_bos), len(ids)),
    )


def render_chat(hf, text, system_prompt=None):
    """`text` as the user's turn in the model's chat template, generation prompt added; one line if it refuses."""
    messages = [{"role": "user", "content": text}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    try:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_ERRORS as error:
        raise UserError(f"the chat template refuses these messages: {printable(error)}") from error


def _tokenize_chat(prompt, hf, system_prompt):
    """The span is found by rendering a marker in the text's place: the text itself may also occur in the system text."""
    rendered = render_chat(hf, prompt.text, system_prompt)
    marker = "\u2603" * 8
    start = render_chat(hf, marker, system_prompt).find(marker)
    text = prompt.text if rendered[start : start + len(prompt.text)] == prompt.text else prompt.text.strip()
    stop = start + len(text)
    if start < 0 or rendered[start:stop] != text:
        raise UserError(f"prompt {prompt.id}: the chat template changes the text, so its tokens cannot be found")
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    inside = [i for i, (left, right) in enumerate(encoded.offset_mapping) if right > start and left < stop]
    return TokenizedPrompt(
        prompt.id,
        prompt.category,
        prompt.pair_id,
        prompt.text,
        rendered,
        list(encoded.input_ids),
        hf.convert_ids_to_tokens(encoded.input_ids),
        (inside[0], inside[-1] + 1) if inside else (0, 0),
    )


def make_batches(lengths, batch_size, batch_tokens=None):
    """Prompt positions in batches of similar length: little is padded, so little is computed for nothing.

    A batch holds at most `batch_size` prompts and, padding counted, `batch_tokens` tokens (None: no limit; a longer prompt
    is a batch of its own).
    """
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        last = batches[-1] if batches else []
        full = batch_tokens is not None and (len(last) + 1) * lengths[i] > batch_tokens
        if not last or len(last) == batch_size or full:
            batches.append([i])
        else:
            last.append(i)
    return batches


def pad_right(token_ids, pad_id=0):
    """(ids, mask), both [prompt, query] int64: right-padded token ids and 1 where a token is real."""
    width = max(len(ids) for ids in token_ids)
    padded = torch.full((len(token_ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return padded, mask


def pattern_hook_name(layer, dtype):
    """Where the pattern of a layer is taken: after the softmax in float32, before it in the short dtypes."""
    return f"blocks.{layer}.attn.hook_pattern" if dtype == "float32" else f"blocks.{layer}.attn.hook_attn_scores"


def to_pattern(tensor, dtype):
    """What the hook received as a float32 numpy pattern [prompt, head, query, key]."""
    if dtype != "float32":
        tensor = torch.softmax(tensor.float(), dim=-1)
    return tensor.detach().to("cpu", torch.float32).numpy()


@contextlib.contextmanager
def skipped_blocks(bridge, first, hidden, as_tuple=False):
    """Inside this context a forward pass starts at block `first` with the residual `hidden` [batch, query, unit].

    Blocks below it are not executed: each hands `hidden` on. Everything else (masks, rotary angles, final norm, logit
    soft cap) stays the model's own code, so that nothing is rebuilt here. TransformerBridge's start_at_layer gives the
    same numbers but executes the blocks below. as_tuple: blocks of this architecture return a tuple.
    """

    def hand_on(*args, **kwargs):
        return (hidden,) if as_tuple else hidden

    below = list(bridge.blocks[:first])
    own = [vars(block).get("forward") for block in below]  # accelerate keeps a wrapper here
    for block in below:
        vars(block)["forward"] = hand_on  # not setattr: a bridge passes attributes on to the module it wraps
    try:
        yield
    finally:
        for block, forward in zip(below, own, strict=True):
            vars(block).pop("forward")
            if forward is not None:
                vars(block)["forward"] = forward


def run_layers(bridge, token_ids, n_layers, dtype, on_layer, edits=(), want_logits=False, resume=None):
    """One forward pass of a right-padded batch; `on_layer(layer, pattern)` is called once per layer, in order.

    token_ids  list of lists of int
    edits      (hook name, function) pairs that change activations; they are attached before anything that measures
    resume     (layer, hidden, as_tuple): start there, as `skipped_blocks` says; `on_layer` is called from that layer on
    returns    logits of each prompt's final token [prompt, vocabulary] float32 if want_logits, else None
    raises     RunFailed if a hook fires more or less than once

    The output projection to the vocabulary is computed for the final positions only: nothing else reads it.
    """
    ids, mask = pad_right(token_ids)
    final = torch.tensor([len(row) - 1 for row in token_ids])
    device = next(bridge.original_model.parameters()).device
    kept, column = kept_logits(bridge.original_model, final, ids.shape[1], device)
    fired = []

    def measure(tensor, hook, layer):
        fired.append(layer)
        on_layer(layer, to_pattern(tensor, dtype))

    first, hidden, as_tuple = resume or (0, None, False)
    layers = list(range(first, n_layers))
    hooks = [(pattern_hook_name(layer, dtype), partial(measure, layer=layer)) for layer in layers]
    with torch.inference_mode(), skipped_blocks(bridge, first, hidden, as_tuple):
        logits = bridge.run_with_hooks(
            ids.to(device),
            attention_mask=mask.to(device),
            fwd_hooks=[*edits, *hooks],
            logits_to_keep=kept if want_logits else 1,
        )
    if fired != layers:
        wrong = next((layer for layer in layers if fired.count(layer) != 1), -1)
        raise RunFailed(f"the attention hook of layer {wrong} fired {fired.count(wrong)} times, not once")
    return logits[torch.arange(len(final)), column.to(logits.device)].float() if want_logits else None


def kept_logits(model, final, width, device):
    """(what the model is told to keep, the column of each prompt's final token [prompt] in it).

    One device: the final positions themselves. Several: a number of last positions, which takes a few more columns,
    because an index tensor would have to lie on the device of the last layer.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        count = width - int(final.min())
        return count, final - (width - count)
    kept, column = torch.unique(final, return_inverse=True)
    return kept.to(device), column


def collect_patterns(bridge, token_ids, n_layers, dtype, edits=()):
    """(patterns, final logits) of one batch: patterns[layer] is [prompt, head, query, key] float32 numpy."""
    patterns = {}
    logits = run_layers(bridge, token_ids, n_layers, dtype, patterns.__setitem__, edits, want_logits=True)
    return patterns, logits


def check_patterns(pattern, n_tokens, layer, facts, tolerance=entropy.ROW_SUM_TOLERANCE):
    """Stop with layer and head unless every real row is a probability distribution over keys it may see.

    pattern  [prompt, head, query, key]    n_tokens  [prompt]    facts  needs n_heads and sliding_windows
    """
    n_tokens = np.asarray(n_tokens)
    if pattern.ndim != 4 or pattern.shape[:2] != (len(n_tokens), facts["n_heads"]):
        raise RunFailed(f"layer {layer}: pattern has shape {pattern.shape}, expected {facts['n_heads']} heads")
    query, key = np.arange(pattern.shape[2]), np.arange(pattern.shape[3])
    real = (query < n_tokens[:, None])[:, None, :]
    window = facts["sliding_windows"][layer]
    allowed = key[None, :] <= query[:, None]
    if window is not None:
        allowed &= key[None, :] > query[:, None] - window
    hidden = np.where(allowed, 0.0, pattern).sum(axis=-1)
    for what, wrong in (
        ("is NaN or infinite", ~np.isfinite(pattern).all(axis=-1)),
        ("does not sum to 1", ~(np.abs(pattern.sum(axis=-1) - 1) <= tolerance)),
        ("attends to keys it cannot see", hidden > ABOVE_DIAGONAL_TOLERANCE),
    ):
        if (wrong & real).any():
            prompt, head, row = np.argwhere(wrong & real)[0]
            total = pattern[prompt, head, row].sum()
            raise RunFailed(f"layer {layer} head {head}: query row {row} {what} (sum {total:.6g}); nothing was saved")


def reduce_pattern(pattern, n_tokens, span, visible):
    """The arrays of one layer of one batch; rows beyond a prompt's tokens are NaN.

    pattern [prompt, head, query, key]   n_tokens [prompt]   span [prompt, 2]   visible [query] keys a row can see
    returns entropy, entropy_sinkfree, sink_mass [prompt, head, query] and the masses of `final_query_masses`
    """
    n_prompts, n_heads, n_query, _ = pattern.shape
    real = np.arange(n_query) < n_tokens[:, None]
    rows = pattern.transpose(0, 2, 1, 3)[real]  # [row, head, key]
    few = (entropy.sinkfree_keys(visible) < 2)[np.nonzero(real)[1]]
    sinkfree = np.full(rows.shape[:2], np.nan)
    sinkfree[~few] = entropy.sinkfree_entropy(rows[~few])
    arrays = {}
    for name, values in (
        ("entropy", entropy.attention_entropy(rows)),
        ("entropy_sinkfree", sinkfree),
        ("sink_mass", rows[..., 0]),
    ):
        full = np.full((n_prompts, n_query, n_heads), np.nan, dtype=np.float32)
        full[real] = values
        arrays[name] = full.transpose(0, 2, 1)
    final = pattern[np.arange(n_prompts), :, n_tokens - 1]
    return arrays | entropy.final_query_masses(final, span)


def empty_arrays(tokenized, facts, n_query):
    """The arrays of attention.npz before anything is measured: NaN or 0 everywhere, labels and lengths filled in."""
    n, layers, heads = len(tokenized), facts["n_layers"], facts["n_heads"]
    rows, masses = (n, layers, heads, n_query), (n, layers, heads)
    return {
        "category": np.array([p.category for p in tokenized]),
        "prompt_id": np.array([p.id for p in tokenized]),
        "pair_id": np.array([p.pair_id for p in tokenized], dtype=np.int64),
        "n_tokens": np.array([len(p.token_ids) for p in tokenized], dtype=np.int64),
        "span": np.array([p.span for p in tokenized], dtype=np.int64).reshape(n, 2),
        "entropy": np.full(rows, np.nan, np.float32),
        "entropy_sinkfree": np.full(rows, np.nan, np.float32),
        "sink_mass": np.full(rows, np.nan, np.float32),
        "visible_keys": entropy.visible_keys(n_query, facts["sliding_windows"]).astype(np.int64),
        "first_mass": np.zeros(masses, np.float32),
        "last_mass": np.zeros(masses, np.float32),
        "edge_mass": np.zeros((*masses, 2), np.float32),
        "edge_tokens": np.zeros(n, np.int64),
    }


@dataclass
class Capture:
    """What a pass over all prompts gave, in the order of the prompt axis; prompts that failed are not in it.

    arrays    the arrays of attention.npz                    patterns  {layer: [prompt, head, query, key]}, {} unless kept
    logits    [prompt, vocabulary] float32 or None           failed    [(prompt id, reason)]
    """

    arrays: dict
    patterns: dict
    logits: np.ndarray
    failed: list


@dataclass
class CleanRun:
    """What an edited pass needs of the unedited one in order to start at the layer that it edits.

    arrays  as in Capture    residuals  {layer: [prompt, query, unit] on the model's device}    as_tuple  see skipped_blocks
    """

    arrays: dict
    residuals: dict
    as_tuple: bool


def capture_clean(loaded, tokenized, layers, batch_size=64, title=None):
    """(Capture with logits, CleanRun): the unedited pass, keeping the residual that enters each of `layers`."""
    residuals, tuples = {}, set()

    def keep(hidden, hook, layer, batch):
        shape = (len(tokenized), max(len(p.token_ids) for p in tokenized), hidden.shape[-1])
        whole = residuals.setdefault(layer, torch.zeros(shape, dtype=hidden.dtype, device=hidden.device))
        whole[torch.tensor(batch, device=hidden.device), : hidden.shape[1]] = hidden.detach()

    def edits_for(batch):
        return [(f"blocks.{layer}.hook_in", partial(keep, layer=layer, batch=batch)) for layer in layers]

    handle = loaded.bridge.blocks[0].register_forward_hook(lambda module, args, out: tuples.add(isinstance(out, tuple)))
    try:
        captured = capture_attention(loaded, tokenized, batch_size, edits_for, want_logits=True, title=title)
    finally:
        handle.remove()
    return captured, CleanRun(captured.arrays, residuals, tuples == {True})


def capture_attention(
    loaded,
    tokenized,
    batch_size=64,
    edits_for=None,
    keep_patterns=False,
    want_logits=False,
    title=None,
    start=None,
    streaming=False,
    batch_tokens=None,
):
    """Run every prompt once and reduce its attention: a Capture.

    edits_for      function of the batch's prompt positions (list of int) -> [(hook name, hook)], None for a clean run
    keep_patterns  also keep the patterns of all layers, zero-padded to the longest prompt
    title          text of the progress bar, None for no bar
    start          (layer, CleanRun): edits begin at that layer, so the layers below are taken from the clean run; None
                   runs everything. Not with keep_patterns.
    streaming      rows without patterns, from the model without its bridge: no edits, patterns or logits
    batch_tokens   at most so many tokens in a batch, padding counted; halved for good after an out-of-memory error
    """
    from tqdm import tqdm

    lengths = [len(p.token_ids) for p in tokenized]
    arrays = empty_arrays(tokenized, loaded.facts, max(lengths)) if start is None else copy_arrays(start[1].arrays)
    patterns = {}
    if keep_patterns:
        shape = (len(tokenized), loaded.n_heads, max(lengths), max(lengths))
        check_pattern_memory(loaded.n_layers, shape)
        patterns = {layer: np.zeros(shape, np.float32) for layer in range(loaded.n_layers)}
    logits, failed = {}, []
    queue = make_batches(lengths, batch_size, batch_tokens)
    with tqdm(total=len(tokenized), desc=title, unit="prompt", disable=title is None, leave=False) as bar:
        while queue:
            batch = queue.pop(0)
            try:
                if streaming:
                    final = _stream_batch(loaded, tokenized, batch, arrays)
                else:
                    final = _capture_batch(loaded, tokenized, batch, arrays, patterns, edits_for, want_logits, start)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    failed.append((tokenized[batch[0]].id, "out of memory with a batch of one"))
                else:
                    longest = max(lengths[i] for i in batch)
                    tqdm.write(f"out of memory with {len(batch)} prompts of {longest} tokens: halved")
                    left = [i for later in (batch, *queue) for i in later]
                    half = [len(batch) // 2, len(batch) * longest // 2]
                    queue = [[left[i] for i in later] for later in make_batches([lengths[i] for i in left], *half)]
                    continue
            else:
                logits.update(zip(batch, final, strict=True))
            bar.update(len(batch))
    lost = {prompt_id for prompt_id, _ in failed}
    kept = [i for i, p in enumerate(tokenized) if p.id not in lost]
    if failed:
        arrays = {name: a if name == "visible_keys" else a[kept] for name, a in arrays.items()}
        patterns = {layer: values[kept] for layer, values in patterns.items()}
    return Capture(arrays, patterns, np.stack([logits[i] for i in kept]) if want_logits and kept else None, failed)


def copy_arrays(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def _capture_batch(loaded, tokenized, batch, arrays, patterns, edits_for, want_logits, start):
    """Run one batch and write its rows into `arrays` (and `patterns`) in place; returns final logits or Nones."""
    prompts = [tokenized[i] for i in batch]
    n_tokens, span = arrays["n_tokens"][batch], arrays["span"][batch]
    width = int(n_tokens.max())

    def on_layer(layer, pattern):
        check_patterns(pattern, n_tokens, layer, loaded.facts)
        if layer in patterns:
            real = (np.arange(width) < n_tokens[:, None])[:, None, :, None]
            patterns[layer][batch, :, :width, :width] = np.where(real, pattern, 0.0)
        _store_layer(
            arrays, batch, layer, reduce_pattern(pattern, n_tokens, span, arrays["visible_keys"][layer, :width])
        )

    edits = [] if edits_for is None else edits_for(batch)
    resume = None
    if start is not None:
        layer, clean = start
        hidden = clean.residuals[layer]
        resume = (layer, hidden[torch.tensor(batch, device=hidden.device), :width], clean.as_tuple)
    ids, dtype = [p.token_ids for p in prompts], loaded.facts["dtype"]
    logits = run_layers(loaded.bridge, ids, loaded.n_layers, dtype, on_layer, edits, want_logits, resume)
    return [None] * len(batch) if logits is None else list(logits.cpu().numpy())


def _stream_batch(loaded, tokenized, batch, arrays):
    """As `_capture_batch`, without a pattern."""
    ids, mask = pad_right([tokenized[i].token_ids for i in batch])

    def on_layer(layer, reduced):
        _store_layer(arrays, batch, layer, reduced)

    stream_layers(loaded.plain, ids, mask, arrays["n_tokens"][batch], arrays["span"][batch], loaded.facts, on_layer)
    return [None] * len(batch)


def _store_layer(arrays, batch, layer, reduced):
    """Write what one layer of one batch gave into the arrays of the run."""
    width = reduced["entropy"].shape[-1]
    for name, values in reduced.items():
        if name == "edge_tokens":
            arrays[name][batch] = values
        elif name in ("entropy", "entropy_sinkfree", "sink_mass"):
            arrays[name][batch, layer, :, :width] = values
        else:
            arrays[name][batch, layer] = values


def is_out_of_memory(error):
    """True for CUDA's and the CPU allocator's out-of-memory errors, which are both RuntimeErrors."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def check_pattern_memory(n_layers, shape):
    """Refuse to keep patterns that would not fit into half of the free memory, with the numbers."""
    import psutil

    needed, free = n_layers * int(np.prod(shape)) * 4, psutil.virtual_memory().available
    if needed > free / 2:
        raise UserError(
            f"--raw patterns needs {needed / 2**30:.1f} GiB for prompts of up to {shape[-1]} tokens, {free / 2**30:.1f} GiB "
            "are free; use --raw none"
        )


def collect_activations(loaded, tokenized, names, batch_size=64):
    """Activations at named hooks: {name: [prompt, query, ...] float32}, zero beyond a prompt's tokens.

    raises  UserError for a name that the model has no hook for, RunFailed for one that does not fire once a batch
    """
    missing = [name for name in names if name not in loaded.bridge.hook_dict]
    if missing:
        raise UserError(f"this model has no hook {missing[0]}; use --raw patterns")
    lengths = [len(p.token_ids) for p in tokenized]
    out = {}
    for batch in make_batches(lengths, batch_size):
        ids, mask = pad_right([tokenized[i].token_ids for i in batch])
        device = next(loaded.bridge.original_model.parameters()).device
        seen = []

        def store(tensor, hook, name, batch=batch, mask=mask, seen=seen):
            seen.append(name)
            values = tensor.detach().to("cpu", torch.float32).numpy()
            values = values * mask.numpy().reshape(mask.shape + (1,) * (values.ndim - 2))
            whole = out.setdefault(name, np.zeros((len(tokenized), max(lengths), *values.shape[2:]), np.float32))
            whole[batch, : values.shape[1]] = values

        hooks = [(name, partial(store, name=name)) for name in names]
        with torch.inference_mode():
            loaded.bridge.run_with_hooks(
                ids.to(device), attention_mask=mask.to(device), fwd_hooks=hooks, logits_to_keep=1
            )
        if sorted(seen) != sorted(names):
            wrong = next(name for name in names if seen.count(name) != 1)
            raise RunFailed(f"hook {wrong} fired {seen.count(wrong)} times, not once")
    return out
