"""Distributions of the next token, and how far one is from another.

KL = sum_v p(v) ln(p(v) / q(v))     nats; p: before the change, q: after
"""

import numpy as np


def log_probabilities(logits):
    """ln softmax over the last axis, float64: [..., vocabulary]."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_of_change(p, change):
    """(KL of base from edited, c) in nats, from base probabilities p and the logits' change.

    With d the change of the logits and c = sum p d, KL = ln sum p exp(d - c). The textbook sum of
    p (ln p - ln q) cancels; this form keeps its relative precision for the smallest effects and is
    exactly 0 where no logit changes. p, change  [vocabulary]
    """
    # einsum, not @: waking BLAS threads costs more than one row does
    mean = float(np.einsum("v,v->", p, change))
    return max(float(np.log1p(np.einsum("v,v->", p, np.expm1(change - mean)))), 0.0), mean


def mean_kl(before, after):
    """Mean over prompts of KL(before || after) in nats; logits [prompt, vocabulary] of both."""
    values = []
    for row, changed in zip(before, after, strict=True):
        row = np.asarray(row, dtype=np.float64)
        p = np.exp(log_probabilities(row))
        values.append(kl_of_change(p, np.asarray(changed, dtype=np.float64) - row)[0])
    return float(np.mean(values))
