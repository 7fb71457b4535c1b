"""Rows of attention from scores: what streaming.py and the monitor have in common, and the rows of
the new queries of one forward pass with a cache.

Scores are float32 whatever the model's dtype, -inf where a key is hidden. L', H' are the
log-sum-exp and entropy of the keys other than the sink (streaming.py says what for). Axes: prompt,
layer, head, query, key.
"""

import numpy as np
import torch

from rolecircuits.capture.masks import HIDDEN, sink_column
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.entropy import sinkfree_keys

ENTROPY_SLACK = 1e-3  # how far beyond 0 and ln(visible keys) rounding may put an entropy, in nats
TOGETHER = 4  # new queries up to which all layers of a pass are reduced at once
BLOCK = 256  # else query rows at a time, layer by layer


def plain_scores(query, key, scale):
    """scale q . k in float32: [prompt, head, query, key]; keys may have fewer heads."""
    n_prompts, n_heads, n_query, width = query.shape
    keys = key.float().flatten(0, 1).transpose(1, 2)
    grouped = query.float().reshape(len(keys), -1, width)  # heads that share keys side by side
    scores = torch.baddbmm(grouped.new_empty(1), grouped, keys, beta=0, alpha=scale)
    return scores.view(n_prompts, n_heads, n_query, -1)


def rest_of_scores(scores, parts=None):
    """(L', H', masses or None) of scores [..., query, key], which are overwritten; -inf is hidden.

    parts   [..., key, part] 1 where a key is in a part, else 0; masses [..., query, part] are the
            sums of the softmax over the scores
    """
    log_sum = torch.logsumexp(scores, dim=-1)
    logs = scores.sub_(log_sum[..., None])
    probability = logs.exp()
    masses = None if parts is None else probability @ parts
    finite = logs.masked_fill_(logs == float("-inf"), 0.0)
    return log_sum, -probability.mul_(finite).sum(dim=-1), masses


def join_sink(sink_score, log_sum, entropy, visible):
    """Entropies and sink mass of all rows from the sink and the rest, as streaming.py says.

    sink_score  [..., query]    visible  [query] keys that a row sees, a learned sink counted
    log_sum, entropy  (L', H') [..., query], or [..., query - 1] where the sink is key 0
    returns     {"entropy", "entropy_sinkfree", "sink_mass"} [..., query] float32; sink-free is NaN
                for rows that keep fewer than two keys, or whose rest has no mass in float32
    """
    without = sink_score.shape[-1] - log_sum.shape[-1]  # row 0 sees nothing but key 0
    rest, odds = np.zeros(sink_score.shape), np.full(sink_score.shape, -np.inf)
    rest[..., without:] = np.where(entropy > -ENTROPY_SLACK, np.maximum(entropy, 0.0), entropy)
    odds[..., without:] = log_sum - sink_score[..., without:].astype(np.float64)
    n_rest = sinkfree_keys(visible)
    odds = np.where(n_rest < visible, odds, np.inf)  # the window has moved past key 0
    odds = np.clip(odds, -700.0, 700.0)  # e^-700 is 0 in float32, and no infinity times 0 arises
    sink, left = 1.0 / (1.0 + np.exp(odds)), 1.0 / (1.0 + np.exp(-odds))
    whole = left * (rest + np.logaddexp(0.0, -odds)) + sink * np.logaddexp(0.0, odds)
    kept = (n_rest >= 2) & (left.astype(np.float32) > 0)
    return {
        "entropy": whole.astype(np.float32),
        "entropy_sinkfree": np.where(kept, rest, np.nan).astype(np.float32),
        "sink_mass": sink.astype(np.float32),
    }


class NewRows:
    """Rows of the new queries of one forward pass, layer after layer.

    start  tokens in the cache before this pass
    pads   [prompt] padding tokens ahead of each text: its key 0 is behind them
    real   [prompt, query] bool, which of the new tokens are none
    parts  [prompt, key, part] float32, 1 where a key is in a part, else 0
    """

    def __init__(self, start, pads, real, parts):
        self.start, self.pads, self.real, self.parts = start, pads, real, parts
        self.waiting, self.rows, self.visible, self.looked = [], [], [], {}

    def add(self, call, window=None):
        """Take the rows of the next layer; window: keys that a row sees where the mask is None."""
        n_new, n_key = call.query.shape[2], call.key.shape[2]
        if n_key > self.start + n_new:
            raise UserError(
                "the cache hands out keys that nothing stands for yet (a static cache); rows are "
                "recorded with a dynamic one"
            )
        if call.bias is not None:
            raise UserError("the model adds a position bias to its scores, which is not recorded")
        seen, visible = self._look(call.mask, n_new, n_key, window, call.query.device)
        self.visible.append(visible)
        blocks = [slice(None)]
        if n_new > TOGETHER:
            blocks = [slice(a, a + BLOCK) for a in range(0, n_new, BLOCK)]
        for rows in blocks:
            scores = plain_scores(call.query[:, :, rows], call.key, call.scale)
            if call.softcap is not None:
                scores = call.softcap * torch.tanh(scores / call.softcap)
            if seen is not None:
                scores.masked_fill_(~seen[:, None, rows], float("-inf"))
            before = self.start + n_new - n_key  # keys that a window's cache no longer holds
            if before:
                scores = torch.nn.functional.pad(scores, (before, 0), value=float("-inf"))
            self.waiting.append(scores)
            if n_new > TOGETHER or call.sinks is not None:
                self._reduce(call.sinks)
        if n_new > TOGETHER:
            done = len(self.rows) - len(blocks)
            self.rows[done:] = [torch.cat(self.rows[done:], dim=3)]

    def _look(self, mask, n_new, n_key, window, device):
        """(which keys each new query sees [prompt or 1, query, key], or None for all; how many)."""
        name = (id(mask), n_key, window)
        if name not in self.looked:
            own = torch.arange(n_key - n_new, n_key, device=device)
            if mask is None:
                window = n_key if window is None else window
                seen, visible = None, (own + 1).clamp(max=window)[None]
                if n_new > 1 or window < n_key:
                    key = torch.arange(n_key, device=device)
                    seen = ((key <= own[:, None]) & (key > own[:, None] - window))[None]
            else:
                seen = _seen_by_mask(mask, own, n_key, window)
                visible = seen.sum(dim=-1)
                first = seen.int().argmax(dim=-1)
                wrong = (first + visible != own + 1) & self.real.to(device)
                if wrong.any():
                    raise UserError(
                        "a query sees keys that are not one stretch up to its own; only causal "
                        "attention, whole, in windows or in chunks, is recorded"
                    )
            # The mask is kept: another one could get its id.
            self.looked[name] = seen, visible.expand(len(self.pads), -1), mask
        return self.looked[name][:2]

    def _reduce(self, sinks=None):
        """Reduce the scores that wait, of as many layers: sink's score, L', H', masses of parts."""
        scores = torch.stack(self.waiting, dim=1)  # [prompt, layer, head, query, key]
        self.waiting = []
        if sinks is None:
            at = self.pads.to(scores.device).view(-1, 1, 1, 1, 1).expand(*scores.shape[:-1], 1)
            sink = scores.gather(-1, at)
            scores.scatter_(-1, at, float("-inf"))
        else:
            sink = sink_column(sinks)[:, None].float().expand(*scores.shape[:-1], 1)
        parts = self.parts.to(scores.device)
        log_sum, entropy, masses = rest_of_scores(scores.flatten(1, 3), parts)
        values = torch.cat([log_sum[..., None], entropy[..., None], masses], dim=-1)
        self.rows.append(torch.cat([sink, values.view(*sink.shape[:-1], -1)], dim=-1))

    def finish(self):
        """(rows [prompt, layer, head, query, 3 + part]: the sink's score, L', H', and the masses of
        parts among the keys other than the sink; keys that each saw [prompt, layer, query]).
        """
        if self.waiting:
            self._reduce()
        device = self.rows[0].device
        rows = torch.cat([rows.to(device) for rows in self.rows], dim=1)
        return rows, torch.stack([visible.to(device) for visible in self.visible], dim=1)


def _seen_by_mask(mask, own, n_key, window):
    """Which keys new queries see by the mask that the layer was given: [prompt or 1, query, key].

    mask  [prompt, 1 or head, query, key] bool, or float that is added to scores; or [prompt, key]
          of padding, for kernels that are causal themselves
    own   [query] place of each new query on the key axis    window  as in `add`
    """
    if not isinstance(mask, torch.Tensor):
        raise UserError(f"masks of {type(mask).__name__} are not read, so rows are not recorded")
    if mask.ndim == 2:
        key = torch.arange(n_key, device=own.device)
        near = key > own[:, None] - (n_key if window is None else window)
        return (key <= own[:, None]) & near & mask[:, None, -n_key:].bool()
    mask = mask[:, :, -len(own) :, :n_key]
    if mask.dtype == torch.bool:
        return mask.any(dim=1)
    seen = mask > -HIDDEN
    if (mask * seen != 0).any():
        raise UserError("the model adds a position bias to its scores, which is not recorded")
    return seen.any(dim=1)
