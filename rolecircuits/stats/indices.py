"""Values of prompts and the two role indices. Every quantity is defined here and only here.

    H = -sum_k A ln A                                         nats, 0 ln 0 = 0, no epsilon
    RFC(l) = 1 - H_self(l) / H_neutral(l)                     > 0: self-referent is the more focused
    RSI(l) = (H_confounder(l) - H_self(l)) / H_neutral(l)     > 0: more focused than about-the-user

H_category(l) is the mean over prompts (equal weights) of a value of a prompt, of three kinds:

    raw         mean over the rows of the prompt, then over heads: grows with length
    normalised  every row divided by ln(visible keys): 0 one-hot, 1 uniform, at any length
    sinkfree    normalised after key 0, the attention sink, is dropped and the row renormalised

The rows are those of the prompt's own text; raw values of raw-format prompts also count the BOS
row, as the original study did. The length null of an index is the same index for uniform
attention; it is 0 for the normalised and the sink-free kind.

Axes everywhere, in this order: prompt, layer, head, query, key.
"""

import numpy as np

from rolecircuits.inputs.categories import first_word
from rolecircuits.stats.entropy import normalise_entropy, sinkfree_keys, visible_keys
from rolecircuits.stats.moments import category_mean, defined_mean, divide
from rolecircuits.stats.units import frame_values, row_categories

KIND_NAMES = {"normalised": "normalised", "sinkfree": "sink-free", "raw": "raw"}  # as shown
KINDS = tuple(KIND_NAMES)
INDICES = ("rfc", "rsi")
INDEX_CATEGORIES = ("self_referent", "neutral", "confounder")
MIN_POSITION_ROWS, MIN_WORD_PROMPTS = 3, 2


def row_mask(n_tokens, span, n_query, whole_prompt):
    """Which rows belong to a prompt: [prompt, query] bool.

    whole_prompt  True: every token fed, BOS included; False: the prompt's own text only
    """
    query = np.arange(n_query)
    if whole_prompt:
        return query < n_tokens[:, None]
    return (query >= span[:, :1]) & (query < span[:, 1:])


def counts_whole_prompt(kind, prompt_format):
    """True where the rows of a value are all tokens fed: the raw value of raw-format prompts."""
    return kind == "raw" and prompt_format == "raw"


def prompt_rows(run, kind):
    """The rows that the value of each prompt is the mean of: [prompt, query] bool."""
    whole = counts_whole_prompt(kind, run.prompt_format)
    return row_mask(run.n_tokens, run.span, run.entropy.shape[-1], whole)


def prompt_values(run, kind="normalised"):
    """The value of every prompt for every head, the mean over its rows: [prompt, layer, head].

    run   anything with entropy, entropy_sinkfree, visible_keys, n_tokens, span and prompt_format
    kind  raw (nats), normalised or sinkfree (both in [0, 1]); NaN where no row is defined
    """
    if kind == "raw":
        values = run.entropy.astype(np.float64)
    elif kind == "normalised":
        values = normalise_entropy(run.entropy, run.visible_keys[None, :, None, :])
    elif kind == "sinkfree":
        keys = sinkfree_keys(run.visible_keys)[None, :, None, :]
        values = normalise_entropy(run.entropy_sinkfree, keys)
    else:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return defined_mean(values, where=prompt_rows(run, kind)[:, None, None, :])


def null_values(run, kind="normalised"):
    """`prompt_values` of attention that is uniform over the visible keys: [prompt, layer]."""
    if kind != "raw":
        return np.ones((len(run.n_tokens), run.visible_keys.shape[0]))
    return defined_mean(np.log(run.visible_keys), where=prompt_rows(run, kind)[:, None, :])


def rfc(h_self, h_neutral):
    """Role-Focus Coefficient 1 - H_self / H_neutral; NaN (undefined, not 0) if H_neutral is 0."""
    return 1.0 - divide(h_self, h_neutral)


def rsi(h_self, h_confounder, h_neutral):
    """Role-Separation Index (H_confounder - H_self) / H_neutral; NaN if H_neutral is 0."""
    return divide(np.asarray(h_confounder) - h_self, h_neutral)


def indices_of_means(means):
    """{"rfc": [...], "rsi": [...]} from a function category name -> mean entropy [...]."""
    h_self, h_neutral = means("self_referent"), means("neutral")
    return {"rfc": rfc(h_self, h_neutral), "rsi": rsi(h_self, means("confounder"), h_neutral)}


def index_values(values, category):
    """RFC and RSI from the values of prompts: [prompt, ...] -> {"rfc": [...], "rsi": [...]}."""
    return indices_of_means(lambda name: category_mean(values, category, name))


def layer_values(run, kind="normalised"):
    """The value of every prompt for every layer, the mean over heads: [prompt, layer]."""
    return prompt_values(run, kind).mean(axis=-1)


def layer_indices(run, kind="normalised"):
    """RFC and RSI of every layer: {"rfc": [layer], "rsi": [layer]}."""
    return index_values(frame_values(run, layer_values(run, kind)), row_categories(run))


def layer_null(run, kind="normalised"):
    """`layer_indices` of attention that is uniform over the visible keys; 0 unless raw."""
    return index_values(frame_values(run, null_values(run, kind)), row_categories(run))


def position_weights(run):
    """Weight of every query index where all categories have rows: [layer, query], sums to 1.

        w(q) proportional to min over categories of (rows at q / prompts), 0 where a category has
        fewer than three rows

    Rows at one query index of a layer see the same number of keys, so nothing about length is left
    to compare. The categories are those of INDEX_CATEGORIES that are present. A layer without a
    shared position is NaN.
    """
    counts = _position_counts(run)
    share = np.min([count / (run.category == name).sum() for name, count in counts.items()], axis=0)
    enough = np.min(list(counts.values()), axis=0) >= MIN_POSITION_ROWS
    weight = np.where(enough, share, 0.0)
    return divide(weight, weight.sum(axis=-1, keepdims=True))


def position_matched_values(run):
    """Values whose category means are position-matched: [prompt, layer]; else NaN.

        H_c = sum_q w(q) m_c(q)     m_c(q) the mean normalised entropy of the rows of c at q
        value of prompt i of c = H_c + N_c sum over its rows q of w(q) / n_c(q) (h_i(q) - m_c(q))

    The second line is the linearised contribution of a prompt to H_c (Hajek's estimator; Sarndal,
    Swensson and Wretman 1992, ch. 5): the mean over the prompts of c is H_c, and their spread
    gives its standard error with w held fixed.
    """
    out = np.full((len(run.n_tokens), run.visible_keys.shape[0]), np.nan)
    if not np.isin(run.category, INDEX_CATEGORIES).any():
        return out
    rows, weight = _own_rows(run), position_weights(run)
    for name, count in _position_counts(run).items():
        chosen = run.category == name
        mean = category_mean(rows, run.category, name)
        share = np.divide(weight, count, out=np.zeros(count.shape), where=count > 0)
        residual = np.nan_to_num(rows[chosen] - mean)
        level = np.where(weight > 0, weight * np.nan_to_num(mean), weight * 0).sum(axis=-1)
        out[chosen] = level + chosen.sum() * (share * residual).sum(axis=-1)
    return out


def first_word_weights(run):
    """`word_weights` of the categories of the indices, of words that two prompts of each have.

    A word that fewer than two prompts of a category begin with says nothing about its spread.
    """
    names = [name for name in INDEX_CATEGORIES if (run.category == name).any()]
    return word_weights(run.category, first_words(run), names, MIN_WORD_PROMPTS)


def word_weights(category, words, names, least):
    """Weight of every first word that `least` prompts of each category begin with: {word: weight}.

        w(word) proportional to min over categories of (prompts that begin with it / prompts)

    category, words  [prompt]. Empty where no word is shared.
    """
    share = {}
    for word in dict.fromkeys(words.tolist()) if len(names) else ():
        counts = [(words[category == name] == word).sum() for name in names]
        sizes = [(category == name).sum() for name in names]
        if min(counts) >= least:
            share[word] = min(n / size for n, size in zip(counts, sizes, strict=True))
    return {word: weight / sum(share.values()) for word, weight in share.items()}


def first_words(run):
    """The first word of every prompt, in lower case: [prompt] str."""
    return np.array([first_word(row["text"]) for row in run.prompts])


def first_word_matched_values(run):
    """Normalised values whose category means compare equal first words: [prompt, layer]; else NaN.

        H_c = sum_w w(word) m_c(word)    m_c(word) the mean over the prompts of c that begin with it

    written prompt by prompt as in `position_matched_values`. In a crossed set every category begins
    with the same words equally often, so these are the plain values.
    """
    values = layer_values(run, "normalised")
    if run.crossed:
        return values
    out, words, weights = np.full(values.shape, np.nan), first_words(run), first_word_weights(run)
    for name in INDEX_CATEGORIES if weights else ():
        chosen = run.category == name
        rows = {word: chosen & (words == word) for word in weights}
        means = {word: defined_mean(values[own], axis=0) for word, own in rows.items()}
        out[chosen] = sum(weight * means[word] for word, weight in weights.items())
        for word, own in rows.items():
            scale = chosen.sum() * weights[word] / max(own.sum(), 1)
            out[own] += scale * (values[own] - means[word])
    return out


def _own_rows(run):
    """Normalised entropy of the text's own rows, mean over heads: [prompt, layer, query]."""
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], False)
    values = normalise_entropy(run.entropy, run.visible_keys[None, :, None, :]).mean(axis=2)
    return np.where(rows[:, None], values, np.nan)


def _position_counts(run):
    """Prompts with a defined row at each query index: {category of the indices: [layer, query]}."""
    defined = ~np.isnan(_own_rows(run))
    chosen = {name: run.category == name for name in INDEX_CATEGORIES}
    return {name: defined[rows].sum(axis=0) for name, rows in chosen.items() if rows.any()}


def length_null(category, n_tokens, span, whole_prompt=True):
    """The raw indices of full causal uniform attention: {"rfc": float, "rsi": float}.

    n_tokens  [prompt] tokens fed            span  [prompt, 2] the prompt's own tokens
    whole_prompt  as in `row_mask`
    """
    n_tokens, span = np.asarray(n_tokens), np.asarray(span)
    rows = row_mask(n_tokens, span, int(n_tokens.max()), whole_prompt)
    values = defined_mean(np.log(visible_keys(rows.shape[1], [None])), where=rows)
    return {name: float(value) for name, value in index_values(values, category).items()}


def summarize(run):
    """activations.json: by kind the mean entropies of categories, the indices and their nulls."""
    summary = {"axes": "layer", "n": run.counts}
    for kind in KINDS:
        values = layer_values(run, kind)
        rows, category = frame_values(run, values), row_categories(run)
        means = {name: category_mean(rows, category, name) for name in run.counts}
        null = {f"{name}_null": value for name, value in layer_null(run, kind).items()}
        summary[kind] = {"entropy": means} | layer_indices(run, kind) | null
        undefined = int(np.isnan(values).any(axis=1).sum())
        if undefined:
            summary[kind]["prompts_without_a_defined_row"] = undefined
    return summary
