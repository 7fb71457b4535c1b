"""Runs made of numbers, for tests and for looking at figures: no model, no torch, every truth
known.

make_run(n_layers=4, n_heads=3, effect=0.2)   a Run whose self-referent rows are `effect` less
                                              entropic
save_run(run, output_dir)                     the same as a complete run folder
"""

import numpy as np

import output_manager
from prompts import select_prompts
from rolecircuits.inputs.categories import cells_of, frame_of, is_crossed, slot_words
from rolecircuits.runs import arrays as run_arrays
from rolecircuits.runs import files, npz, record
from rolecircuits.stats import entropy, masses


def make_run(
    n_layers=4,
    n_heads=3,
    effect=0.2,
    per_category=30,
    seed=0,
    model_id="synthetic",
    prompt_format="raw",
    prompts=None,
    first_words=False,
):
    """Attention rows from softmax of Gaussian scores with a sink on key 0; `effect` sharpens
    self-referent rows. Prompts are the original ones, or those given.

    The rows of prompts are independent, so each is a frame by itself unless the prompts give
    frames; first_words: frames are first words, as in a real run."""
    rng = np.random.default_rng(seed)
    prompts = select_prompts(per_category=per_category) if prompts is None else prompts
    words = np.array([len(p.text.split()) for p in prompts])
    n_tokens = words + 3
    span = np.stack([np.ones_like(n_tokens), n_tokens], axis=1)
    n_query, n_prompts = int(n_tokens.max()), len(prompts)
    category = np.array([p.category for p in prompts])
    scores = rng.normal(size=(n_prompts, n_layers, n_heads, n_query, n_query))
    scores *= (
        1
        + rng.random((1, n_layers, n_heads, 1, 1))
        + effect * (category == "self_referent")[:, None, None, None, None]
    )
    scores[..., 0] += 1.5
    key = np.arange(n_query)
    seen = (key[None, :] <= key[:, None]) & (key < n_tokens[:, None, None])
    scores = np.where(seen[:, None, None], scores, -np.inf)
    pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    visible = entropy.visible_keys(n_query, [None] * n_layers)
    real = (key < n_tokens[:, None])[:, None, None, :]
    few = entropy.sinkfree_keys(visible)[None, :, None, :] < 2
    final = pattern[np.arange(n_prompts), :, :, n_tokens - 1]
    places = masses.Places(span, slots_of(prompts), segments_of(n_tokens, n_query))
    measured = [masses.final_query_masses(final[:, layer], places) for layer in range(n_layers)]
    config = {
        "schema_version": record.SCHEMA_VERSION,
        "model": {
            "id": model_id,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "weights_sha256": model_id,
        },
        "prompts": {"format": prompt_format, "sha256": "synthetic", "crossed": is_crossed(prompts)},
        "status": "complete",
    }
    arrays = {
        "category": category,
        "prompt_id": np.array([p.id for p in prompts]),
        "pair_id": np.array([p.pair_id for p in prompts]),
        "n_tokens": n_tokens,
        "span": span,
        "entropy": np.where(real, entropy.attention_entropy(pattern), np.nan),
        "entropy_sinkfree": np.where(real & ~few, entropy.sinkfree_entropy(pattern), np.nan),
        "sink_mass": np.where(real, pattern[..., 0], np.nan),
        "visible_keys": visible,
        "edge_tokens": measured[0]["edge_tokens"],
        "frame": np.array([frame_of(p) if first_words else p.frame or p.id for p in prompts]),
        "filler": np.array([p.filler for p in prompts]),
        "slot": places.slot,
        "segment": np.array(masses.SEGMENTS),
        **masses.uniform_masses(places, n_tokens, visible),
    }
    stacked = [name for name in measured[0] if name != "edge_tokens"]
    arrays |= {name: np.stack([m[name] for m in measured], axis=1) for name in stacked}
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    rows = [
        {"id": p.id, "category": p.category, "pair_id": p.pair_id, "text": p.text} for p in prompts
    ]
    return run_arrays.Run(path=None, config=config, prompts=rows, **arrays)


def slots_of(prompts):
    """The token of the word in which the slot begins: [prompt, 2]; -1 unless crossed."""
    slots = dict.fromkeys((p.id for p in prompts), (-1, -1))
    if is_crossed(prompts):
        for cell in cells_of(prompts).values():
            for p, (start, _) in zip(cell, slot_words(cell), strict=True):
                at = 3 + len(p.text[: start + 1].split()) - 1
                slots[p.id] = (at, at + 1)
    return np.array([slots[p.id] for p in prompts])


def segments_of(n_tokens, n_query):
    """Key 0 is the sink, the rest the user's text: [prompt, key], -1 beyond a prompt."""
    key = np.arange(n_query)
    segment = np.where(key == 0, 0, masses.SEGMENTS.index("user_text"))
    return np.where(key < n_tokens[:, None], segment, -1)


def save_run(run, output_dir, latest="latest_run"):
    """Publish a Run as a run folder; returns its path."""
    with output_manager.create_run(output_dir, latest) as new:
        files.write_json(new.path / "experiment_config.json", run.config)
        files.write_prompts(new.path / "prompts.jsonl", run.prompts)
        arrays = {name: getattr(run, name) for name in run_arrays.ARRAYS}
        npz.write_npz(new.path / "attention.npz", arrays)
    return new.final
