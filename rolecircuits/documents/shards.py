"""What is kept of a captured document: a shard, <output_dir>/document_shards/<hash>.npz.

    turn_*  mean over the rows of a turn                 [turn, layer, head]
    whole_* mean over the rows of all turns              [layer, head]
    row_*   mean over heads of every row, template too   [layer, query]      NaN where undefined

each for normalised and sinkfree entropy and the sink's mass, in float32. Of a conversation's turns
also, NaN for texts,

    turn_segment_mass     attention of their rows on segments  [turn, layer, head, segment]
    turn_segment_uniform  were it alike on all they see        [turn, layer, segment]
"""

import numpy as np

from rolecircuits.capture.attention import TURN_MASS, capture_patterns, capture_streaming
from rolecircuits.documents.tokens import TokenizedDocument
from rolecircuits.models.load import LoadedModel
from rolecircuits.runs.finished import piece_name
from rolecircuits.stats import entropy, masses, moments

SHARDS = "document_shards"
SHARD_VERSION = 3
SHARDED = ("patterns", "streaming")  # ways of capture; a chat has no shard
VALUES = ("normalised", "sinkfree", "sink_mass")


def shard_name(facts, document: TokenizedDocument, method):
    """The file of a document's shard."""
    return piece_name(
        SHARD_VERSION,
        facts,
        capture=method,
        token_ids=document.prompt.token_ids,
        roles=document.roles,
        spans=document.spans,
        id=document.prompt.id,
    )


def shard_shapes(facts, document: TokenizedDocument):
    """{array: shape} of a document's shard."""
    n_turns, layers_heads = len(document.spans), (facts["n_layers"], facts["n_heads"])
    shapes = {"spans": (n_turns, 2), "n_tokens": ()}
    for name in VALUES:
        shapes[f"turn_{name}"] = (n_turns, *layers_heads)
        shapes[f"whole_{name}"] = layers_heads
        shapes[f"row_{name}"] = (facts["n_layers"], document.n_tokens)
    shapes["turn_segment_mass"] = (n_turns, *layers_heads, len(masses.SEGMENTS))
    shapes["turn_segment_uniform"] = (n_turns, facts["n_layers"], len(masses.SEGMENTS))
    return shapes


def capture_documents(loaded: LoadedModel, documents, method, batch_size=64):
    """({id: arrays of its shard} of the captured documents, [(id, reason)] of the others)."""
    prompts = [document.prompt for document in documents]
    capture = capture_streaming if method == "streaming" else capture_patterns
    turns = [document.spans if document.is_chat else () for document in documents]
    captured = capture(loaded, prompts, batch_size, turns=turns if any(turns) else None)
    by_id = {document.prompt.id: document for document in documents}
    shards = {
        name: shard_arrays(captured.arrays, i, by_id[name])
        for i, name in enumerate(captured.arrays["prompt_id"].tolist())
    }
    return shards, captured.failed


def shard_arrays(arrays, i, document):
    """The arrays of a shard, from those of a capture in which the document is prompt i."""
    n = document.n_tokens
    visible = arrays["visible_keys"][:, :n]
    keys, keys_free = visible[:, None], entropy.sinkfree_keys(visible)[:, None]
    rows = {
        "normalised": entropy.normalise_entropy(arrays["entropy"][i, ..., :n], keys),
        "sinkfree": entropy.normalise_entropy(arrays["entropy_sinkfree"][i, ..., :n], keys_free),
        "sink_mass": arrays["sink_mass"][i, ..., :n],
    }
    query, kept = np.arange(n), {}
    inside = [(query >= start) & (query < stop) for start, stop in document.spans]
    for name, values in rows.items():
        kept[f"turn_{name}"] = np.stack(
            [moments.defined_mean(values, where=mask) for mask in inside]
        )
        kept[f"whole_{name}"] = moments.defined_mean(values, where=np.any(inside, axis=0))
        kept[f"row_{name}"] = moments.defined_mean(np.moveaxis(values, 1, -1))
    kept |= turn_segments(arrays, i, document)
    kept = {name: values.astype(np.float32) for name, values in kept.items()}
    return kept | {"spans": np.array(document.spans, np.int64), "n_tokens": np.array(n, np.int64)}


def turn_segments(arrays, i, document):
    """{"turn_segment_mass", "turn_segment_uniform"} of the document that is prompt i."""
    n_turns, n_layers = len(document.spans), len(arrays["visible_keys"])
    shape = (n_turns, *arrays["entropy"].shape[1:3], len(masses.SEGMENTS))
    found = {
        "turn_segment_mass": np.full(shape, np.nan),
        "turn_segment_uniform": np.full((n_turns, n_layers, shape[-1]), np.nan),
    }
    if TURN_MASS in arrays and document.is_chat:
        visible = arrays["visible_keys"][:, : document.n_tokens]
        uniform = masses.uniform_segment_rows(document.prompt.segments, visible)
        means = masses.turn_means(uniform, document.spans)  # [layer, turn, segment]
        found["turn_segment_uniform"] = means.transpose(1, 0, 2)
        own = arrays[TURN_MASS][i, :, :, :n_turns]  # [layer, head, turn, segment]
        found["turn_segment_mass"] = own.transpose(2, 0, 1, 3)
    return found
