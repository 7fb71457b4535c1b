"""What all prompts of a batch begin with is computed once, and nothing changes."""

import contextlib
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import GPT2Config, MixtralConfig

from rolecircuits.capture import attention, generation, patterns, prefix
from rolecircuits.capture.batches import Edit
from rolecircuits.capture.prefix import common_prefix, shared_prefix, shared_tokens
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import bench, passes, plan
from rolecircuits.edits.donors import collect_donors
from rolecircuits.edits.hooks import prepare_edit
from rolecircuits.edits.plan import parse_entries
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, Setting
from rolecircuits.models.source import BUNDLED
from tiny_models import CONFIGS, SHAPE, load_checked, save_config, save_tiny

CROSSED = cut_prompts(built_in_prompts("crossed"), 6)


@pytest.mark.parametrize(
    ("rows", "n"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 0, 0]], 2),  # padding with 0 is no token of the first prompt
        ([[5], [6]], 0),
        ([[1, 2], [1, 2]], 2),
        ([[7, 8, 9]], 3),
    ],
)
def test_the_common_prefix_by_hand(rows, n):
    assert common_prefix(rows) == n


@pytest.mark.parametrize("name", list(CONFIGS))
def test_arrays_and_patterns_are_those_of_the_whole_pass(tmp_path, monkeypatch, name):
    loaded = load_checked(save_tiny(name, tmp_path / name), device="cpu")
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    ids = [prompt.token_ids for prompt in tokenized]
    assert common_prefix(ids) > 15, "a chat template begins alike"
    loaded.attention["not_packed"] = "is tested"
    found = attention.capture_patterns(loaded, tokenized, keep_patterns=True)
    monkeypatch.setattr(patterns, "shared_prefix", lambda *given: contextlib.nullcontext())
    whole = attention.capture_patterns(loaded, tokenized, keep_patterns=True)
    for key, expected in whole.arrays.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found.arrays[key], expected, atol=2e-6, err_msg=key)
    for layer, expected in whole.patterns.items():
        np.testing.assert_allclose(found.patterns[layer], expected, atol=2e-6)


def test_linear_layers_get_each_shared_token_once_and_are_as_before_afterwards(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    model, rows, seen = loaded.model, [[1, 2, 3, 4], [1, 2, 3, 5, 6]], []
    linear = next(part for part in model.modules() if type(part) is torch.nn.Linear)
    hidden = torch.randn(2, 5, linear.in_features)
    hidden[1, :3] = hidden[0, :3]
    plain, forward = linear(hidden), linear.forward
    wrapped = lambda values: seen.append(values.shape) or forward(values)  # noqa: E731
    linear.forward = wrapped
    with shared_prefix(model, rows):
        torch.testing.assert_close(linear(hidden), plain)
    assert seen == [(3 + 2 * 2, linear.in_features)]
    with pytest.raises(RuntimeError, match="inside"), shared_prefix(model, rows):
        raise RuntimeError("inside")
    assert linear.forward is wrapped
    linears = [part for part in model.modules() if type(part) is torch.nn.Linear]
    assert [part for part in linears if "forward" in vars(part)] == [linear]


def test_rows_of_one_owner_share_what_they_begin_with_alike(tmp_path):
    """Not with rows of another owner, whose edit is another, nor after the first other token."""
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    model, rows, seen = loaded.model, [[1, 2, 3], [1, 2, 4], [1, 5, 3]] * 2, []
    linear = next(part for part in model.modules() if type(part) is torch.nn.Linear)
    hidden = torch.randn(6, 3, linear.in_features)
    for first in (0, 3):  # alike where tokens and owner are; nowhere else
        hidden[first + 1, :2] = hidden[first, :2]
        hidden[first + 2, 0] = hidden[first, 0]
    plain, forward = linear(hidden), linear.forward
    linear.forward = lambda values: seen.append(len(values)) or forward(values)
    with shared_tokens(model, rows, [7, 7, 7, 0, 0, 0]):
        torch.testing.assert_close(linear(hidden), plain)
        linear(hidden[:, :1])  # another shape, as the logits of the final token have: left alone
    assert seen == [2 * (9 - 3), 6]


# Every method of a plan, at every component that it edits; layer 0, so that all else comes after.
HEAD = {"type": "head", "layer": 0, "head": 1}
PATCH = {"type": "patch", "layer": 0, "method": "paired"}
OTHER = {"type": "patch", "layer": 0, "method": "other_model", "source": "other", "head": 2}
ENTRIES = parse_entries(
    [
        *(HEAD | {"method": name} for name in ("zero_out", "half_out", "mean", "resample")),
        HEAD | {"method": "scale", "factor": -2},
        {"type": "layer_heads", "layer": 0, "head": [0, 3], "method": "mean"},
        *({"type": "mlp", "layer": 0, "method": name} for name in ("zero_out", "mean")),
        *(
            {"type": "pattern", "layer": 0, "head": None, "method": name}
            for name in ("uniform", "random")
        ),
        *(PATCH | {"component": name} for name in ("mlp", "layer")),
        PATCH | {"head": None},
        OTHER,
        {"type": "steer", "layer": 0, "method": "add", "alpha": 3.0},
        {"type": "steer", "layer": 0, "method": "project_out"},
    ],
    "plan",
)
PAIRS = [  # two that begin alike, and are paired with two that do not
    Prompt("c0", "confounder", 90, "You know this town."),
    Prompt("c1", "confounder", 91, "You know this river."),
    Prompt("t0", "third_person", 90, "She know this town."),
    Prompt("t1", "third_person", 91, "He know this river."),
]
DIFFERS = ("resample", "random", "paired")  # edits that would be wrong if prompts shared anything


def test_every_method_of_a_plan_is_tried_here():
    fields = [kind.model_fields["method"].annotation for kind in plan.ENTRIES.values()]
    methods = {name for field in fields for name in get_args(field)}
    assert {entry.method for entry in ENTRIES} == methods
    assert {*plan.ALIKE, *DIFFERS, "other_model"} == methods


@pytest.fixture(scope="module", params=["raw", "chat"])
def prompts(request, llama):
    """Prompts of many lengths of which some begin alike, confounder and third person in pairs."""
    chosen = cut_prompts(built_in_prompts("original"), 5) + PAIRS
    form = PromptFormat(request.param)
    tokenized = tokenize_prompts(chosen, llama.tokenizer, form)
    assert len({len(prompt.token_ids) for prompt in tokenized}) > 3
    return tokenized


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_checked(save_tiny("llama", tmp_path_factory.mktemp("llama")), device="cpu")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("other"), initializer_range=0.1)
    return load_checked(folder, device="cpu")


def prepared(loaded, other, tokenized, entry):
    load = lambda source: other  # noqa: E731
    return prepare_edit(entry, collect_donors(loaded, tokenized, [entry], 1, load_other=load))


def gap_of(found, whole):
    """The largest difference of two Captures, of logits as a share of the largest."""
    gaps = [abs(found.logits - whole.logits).max() / max(1.0, abs(whole.logits).max())]
    for name, values in whole.arrays.items():
        if values.dtype.kind == "f":
            gaps.append(np.nan_to_num(abs(found.arrays[name] - values)).max())
    return float(max(gaps))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_an_edit_shares_what_it_treats_alike_and_nothing_else(llama, other, prompts, entry):
    """From its layer on and whole: the same values. Shared where it must not be: others."""
    edit = prepared(llama, other, prompts, entry)
    edits = bench.edits_for(edit, prompts)
    _, clean = passes.capture_clean(llama, prompts, [0])
    for size, start in ((64, None), (5, (0, clean))):
        whole = passes.capture_edited(llama, prompts, edits, size)
        found = passes.capture_edited(llama, prompts, edits, size, start, edit.alike)
        assert gap_of(found, whole) <= 1e-5
    whole = passes.capture_edited(llama, prompts, edits)
    shared = passes.capture_edited(llama, prompts, edits, alike=True)
    assert (gap_of(shared, whole) > 1e-3) == (entry.method in DIFFERS)


@pytest.fixture
def computed(monkeypatch):
    """How many tokens linear layers compute, of every pass that may share any."""
    seen, real = [], prefix._shared

    def watched(model, place):
        seen.append(len(torch.unique(place)))
        return real(model, place)

    monkeypatch.setattr(prefix, "_shared", watched)
    return seen


def test_a_plan_computes_a_token_once_where_it_may(llama, computed):
    """The unedited pass, donors and edits that treat prompts alike; not the check of the bridge,
    and no edit that differs by prompt.
    """
    chosen, form = cut_prompts(built_in_prompts("original"), 4), PromptFormat("chat")
    entries = [next(e for e in ENTRIES if e.method == name) for name in ("mean", "random")]
    made = bench.Bench(llama, chosen, entries, Setting(ModelSpec("tiny"), form, 64, 1))
    texts = [prompt.token_ids for prompt in made.tokenized]
    once = len({tuple(ids[: n + 1]) for ids in texts for n in range(len(ids))}) + 1  # padding
    assert made.starts_inside
    assert computed == 3 * [once], "donors, the unedited pass, and whether it starts inside"
    made.measure(entries[0].name)
    assert computed == 4 * [once]
    made.measure(entries[1].name)
    passes.capture_edited(llama, made.tokenized, lambda batch: [])
    passes.collect_patterns(llama, texts)
    assert computed == 4 * [once]


@pytest.mark.parametrize("entry", [None, *ENTRIES], ids=["unedited", *(e.name for e in ENTRIES)])
def test_answers_and_caches_are_those_of_whole_first_steps(
    llama, other, prompts, entry, monkeypatch
):
    edit, caches = entry and prepared(llama, other, prompts, entry), []
    make = generation.DynamicCache
    monkeypatch.setattr(
        generation, "DynamicCache", lambda **given: caches.append(make(**given)) or caches[-1]
    )
    generate = partial(generation.generate_greedily, llama, prompts, 6, 64)
    found, n = generate(edit), len(caches)
    again = generate(Edit(edit.prepare, alike=True)) if edit else found
    monkeypatch.setattr(generation, "shared_tokens", lambda *given: contextlib.nullcontext())
    whole = generate(edit)
    assert found == whole
    gaps = [cache_gap(*pair) for pair in zip(caches[:n], caches[-n:], strict=True)]
    assert max(gaps) <= 1e-5 and n == len({len(p.token_ids) for p in prompts})
    forced = [cache_gap(*pair) for pair in zip(caches[-2 * n : -n], caches[-n:], strict=True)]
    wrong = entry is not None and entry.method in DIFFERS
    assert (max(forced) > 1e-3) == wrong and (again == whole or wrong)


def cache_gap(found, whole):
    """The largest difference of two caches: keys and values of all layers."""
    return max(
        float((a - b).abs().max())
        for one, two in zip(found.layers, whole.layers, strict=True)
        for a, b in ((one.keys, two.keys), (one.values, two.values))
    )


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
        GPT2Config(vocab_size=49152, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2),
    ],
    ids=["experts", "no linear layers"],
)
def test_other_architectures_share_what_they_can(tmp_path, config):
    loaded = load_checked(save_config(config, tmp_path / "tiny"), device="cpu")
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    found, clean = passes.capture_clean(loaded, tokenized, [1])
    assert gap_of(found, passes.capture_edited(loaded, tokenized, lambda batch: [])) <= 1e-5
    assert bench.starts_exactly(loaded, tokenized, found, clean, 1, 64)


@pytest.fixture(scope="module")
def bundled():
    return load_checked(BUNDLED, device="cpu")


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_the_bundled_model_starts_inside_and_answers_as_ever(bundled, form, monkeypatch):
    loaded, chosen = bundled, cut_prompts(built_in_prompts("original"), 2)
    tokenized = tokenize_prompts(chosen, loaded.tokenizer, PromptFormat(form))
    found, clean = passes.capture_clean(loaded, tokenized, [15])
    assert gap_of(found, passes.capture_edited(loaded, tokenized, lambda batch: [])) <= 1e-5
    assert bench.starts_exactly(loaded, tokenized, found, clean, 15, 64)
    answers = generation.generate_greedily(loaded, tokenized, 5)
    monkeypatch.setattr(generation, "shared_tokens", lambda *given: contextlib.nullcontext())
    assert generation.generate_greedily(loaded, tokenized, 5) == answers
