"""Entropies of attention rows, with and without the attention sink.

    H = -sum_k A ln A        nats, 0 ln 0 = 0, no epsilon

Axes everywhere, in this order: prompt, layer, head, query, key.
"""

import numpy as np

ROW_SUM_TOLERANCE = 1e-3


def attention_entropy(pattern, tolerance=ROW_SUM_TOLERANCE):
    """Shannon entropy of every attention row, in nats.

    pattern    [..., query, key]   rows sum to 1; masked keys are exactly 0
    tolerance  how far a row sum may be from 1
    returns    [..., query] float64, between 0 and ln(visible keys)
    raises     ValueError with the offending sum: an all-zero row is an error, not an entropy of 0

    An epsilon before the logarithm, as in the original, gives a zeroed head the entropy ln(keys).
    """
    pattern = np.asarray(pattern, dtype=np.float64)
    sums = pattern.sum(axis=-1)
    wrong = ~(np.abs(sums - 1) <= tolerance)
    if wrong.any():
        raise ValueError(
            f"an attention row sums to {sums[wrong][0]:.6g}, not 1 (tolerance {tolerance:g})"
        )
    if (pattern < 0).any():
        raise ValueError(f"an attention probability is negative: {pattern.min():.6g}")
    logs = np.zeros_like(pattern)
    np.log(pattern, out=logs, where=pattern > 0)
    return np.maximum(-np.einsum("...k,...k->...", pattern, logs), 0.0) + 0.0


def sinkfree_pattern(pattern):
    """Rows without key 0, renormalised; all-NaN where nothing is left to renormalise.

    pattern  [..., query, key]      returns  [..., query, key - 1] float64
    """
    rest = np.asarray(pattern, dtype=np.float64)[..., 1:]
    left = rest.sum(axis=-1, keepdims=True)
    return np.divide(rest, left, out=np.full_like(rest, np.nan), where=left > 0)


def sinkfree_entropy(pattern, tolerance=ROW_SUM_TOLERANCE):
    """Entropy in nats after key 0 is dropped and the row renormalised.

    pattern  [..., query, key] -> [..., query]; NaN where all of the mass sat on key 0
    """
    rest = sinkfree_pattern(pattern)
    out = np.full(rest.shape[:-1], np.nan)
    defined = ~np.isnan(rest).any(axis=-1) if rest.shape[-1] else np.zeros(out.shape, bool)
    out[defined] = attention_entropy(rest[defined], tolerance)
    return out


def causal_keys(n_query):
    """Keys that each row of full causal attention sees: [query] int."""
    return np.arange(1, n_query + 1)


def visible_keys(n_query, windows):
    """Keys that each row can see: query + 1, capped by the layer's sliding window.

    windows  one entry a layer: the window in tokens, or None for full causal attention
    returns  [layer, query] int
    """
    causal = causal_keys(n_query)
    return np.stack(
        [causal if window is None else np.minimum(causal, window) for window in windows]
    )


def has_sink_key(visible):
    """Whether heads have a learned sink, a key ahead of the tokens: the first row sees two keys.

    visible  [..., query]      returns  [..., 1] bool
    """
    return visible[..., :1] > 1


def sinkfree_keys(visible):
    """Keys left once the sink is dropped, [..., query]: key 0, or the learned sink where heads have
    one. None is lost by a window that is past key 0.
    """
    sees_first = visible == causal_keys(visible.shape[-1])
    return np.where(sees_first | has_sink_key(visible), visible - 1, visible)


def normalise_entropy(entropy, keys):
    """Entropy divided by ln(keys), in [0, 1]; NaN for rows that see fewer than two keys.

    entropy  [..., query] nats    keys  broadcastable to it
    """
    keys, shape = np.asarray(keys), np.shape(entropy)
    most = np.log(np.maximum(keys, 1))  # before it is broadcast: one logarithm a row, not a head
    seen = np.broadcast_to(keys > 1, shape)
    return np.divide(entropy, most, out=np.full(shape, np.nan), where=seen)
