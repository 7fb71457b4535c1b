"""What a model attended to while it answered: monitor.npz and monitor.csv beside its answers.

A row is a token of an answer: the attention of the query that it was drawn from, which for the
first one is the prompt's last token.

    monitor.csv  means over layers and heads     monitor.npz  every layer and head:
    prompt_id [prompt]; row_prompt, token, token_id, n_keys [row]; normalised, sinkfree, raw,
    sink_mass, slot_mass [row, layer, head]; segment_mass [row, layer, head, segment] and
    segment_uniform [row, layer, segment]; segment [segment]
"""

import numpy as np

from rolecircuits.inputs.errors import RunFailed
from rolecircuits.monitor import KINDS, RoleMonitor
from rolecircuits.runs.arrays import facts_of
from rolecircuits.runs.files import write_csv
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats.masses import SEGMENTS

BY_HEAD = (*KINDS, "sink_mass", "slot_mass")


def make_monitor(loaded, tokenized):
    """A RoleMonitor for the answers of a loaded model to these TokenizedPrompts."""
    return RoleMonitor(loaded.model, loaded.tokenizer, tokenized)


def save_monitored(folder, monitor, tokenized, answered, config):
    """Write monitor.npz and monitor.csv of answers.

    answered  rows of answers.describe_answers, in the order of the prompts
    """
    recorded = {}
    for text in monitor.texts:  # a batch that ran out of memory was done again: the last one counts
        recorded[tuple(text.token_ids)] = text
    by_prompt = _first_tokens(recorded, {len(prompt.token_ids) for prompt in tokenized})
    arrays, rows = {}, []
    for i, (prompt, answer) in enumerate(zip(tokenized, answered, strict=True)):
        text = by_prompt.get(tuple(prompt.token_ids))
        start, ids = len(prompt.token_ids) - 1, answer["token_ids"]
        own = slice(start, start + len(ids))
        if text is None or text.token_ids[start + 1 : own.stop] != ids[:-1]:
            raise RunFailed(f"the rows that were recorded are not those of prompt {prompt.id}")
        _append(arrays, text, own, i, ids)
        means = {name: values[own] for name, values in text.row_means().items()}
        labels = {"id": prompt.id, "category": prompt.category}
        for token in range(len(ids)):
            values = {name: float(own[token]) for name, own in means.items()}
            rows.append(labels | {"token": token, "token_id": ids[token]} | values)
    arrays = {name: np.concatenate(parts) for name, parts in arrays.items()}
    arrays |= {"prompt_id": np.array([p.id for p in tokenized]), "segment": np.array(SEGMENTS)}
    write_npz(folder / "monitor.npz", arrays)
    write_csv(folder / "monitor.csv", rows, facts=facts_of(config, "generation"))


def _first_tokens(recorded, lengths):
    """{first tokens of a text, of each of these lengths: the Recorded}."""
    return {ids[:n]: text for ids, text in recorded.items() for n in lengths if len(ids) >= n}


def _append(arrays, text, own, prompt, ids):
    """Add the rows of one answer to lists of arrays."""
    values = text.values()
    for name in BY_HEAD:
        arrays.setdefault(name, []).append(
            values[name][:, :, own].transpose(2, 0, 1).astype(np.float32)
        )
    masses = values["segment_mass"][:, :, own].transpose(2, 0, 1, 3)
    uniform = values["segment_uniform"][:, own].transpose(1, 0, 2).astype(np.float32)
    n = np.arange(own.start, own.stop)
    labels = {
        "segment_mass": masses,
        "segment_uniform": uniform,
        "row_prompt": np.full(len(ids), prompt),
        "token": np.arange(len(ids)),
        "token_id": np.array(ids),
        "n_keys": n + 1,
    }
    for name, part in labels.items():
        arrays.setdefault(name, []).append(part)
