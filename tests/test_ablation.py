"""Every edit does what its formula says, to real rows only, never to the tensor it was given."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prompts import select_prompts
from rolecircuits.capture import batches
from rolecircuits.capture.activations import collect_activations
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import donors as donors_module
from rolecircuits.edits import hooks
from rolecircuits.edits.passes import capture_clean, capture_edited, collect_patterns, run_layers
from rolecircuits.edits.plan import ALIKE, parse_entry
from rolecircuits.inputs.errors import UserError
from tiny_models import WINDOW, load_checked, save_tiny

FAMILIES = ("llama", "mistral", "qwen2", "gemma2")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: save_tiny(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def model(request, folders):
    loaded = load_checked(folders[request.param])
    loaded.facts["folder"] = folders[request.param]
    return loaded


@pytest.fixture(scope="session")
def llama(folders):
    return load_checked(folders["llama"])


def tokenize(loaded, per_category=4):
    return tokenize_prompts(select_prompts(per_category=per_category), loaded.tokenizer)


def make(**fields):
    return parse_entry(fields, "plan[0]")


def run_edited(loaded, tokenized, entry=None, batch_size=5, keep_patterns=False, start=None):
    """By the arguments of `capture_edited`; an edit that treats prompts alike shares tokens."""
    edits, alike = lambda batch: [], entry is None or entry.method in ALIKE
    if entry is not None:
        prepare = hooks.prepare_edit(
            entry, donors_module.collect_donors(loaded, tokenized, [entry], seed=1)
        )
        edits = lambda batch: prepare(rows_of(tokenized, batch))  # noqa: E731
    if keep_patterns:
        return SimpleNamespace(patterns=edited_patterns(loaded, tokenized, edits, batch_size))
    return capture_edited(loaded, tokenized, edits, batch_size, start, alike)


def edited_patterns(loaded, tokenized, edits, batch_size):
    """{layer: [prompt, head, query, key]} of an edited pass, 0 beyond a prompt's tokens."""
    lengths = [len(p.token_ids) for p in tokenized]
    shape = (len(tokenized), loaded.n_heads, max(lengths), max(lengths))
    whole = {layer: np.zeros(shape, np.float32) for layer in range(loaded.n_layers)}
    for batch in batches.make_batches(lengths, batch_size):
        found, _ = collect_patterns(loaded, [tokenized[i].token_ids for i in batch], edits(batch))
        for layer, rows in found.items():
            for i, pattern in zip(batch, rows, strict=True):
                n = lengths[i]
                whole[layer][i, :, :n, :n] = pattern[:, :n, :n]
    return whole


def rows_of(tokenized, batch):
    return batches.Rows(list(batch), [len(tokenized[i].token_ids) for i in batch])


def assert_same(a, b):
    np.testing.assert_array_equal(a.logits, b.logits)
    for name, values in a.arrays.items():
        np.testing.assert_array_equal(values, b.arrays[name], err_msg=name)


@pytest.mark.parametrize("kind", ["factor 1", "no edits", "patched with itself"])
def test_an_edit_that_changes_nothing_is_bit_identical(model, kind):
    tokenized = tokenize(model)
    clean = run_edited(model, tokenized)
    if kind == "factor 1":
        same = run_edited(
            model, tokenized, make(type="layer_heads", layer=1, head=None, method="scale", factor=1)
        )
    elif kind == "no edits":
        same, _ = capture_clean(model, tokenized, batch_size=5)
    else:
        entry = make(
            type="patch", component="layer", layer=1, method="other_model", source="itself"
        )
        donors = donors_module.collect_donors(
            model, tokenized, [entry], batch_size=5, load_other=lambda source: model
        )
        prepare = hooks.prepare_edit(entry, donors)
        edits = lambda batch: prepare(rows_of(tokenized, batch))  # noqa: E731
        same = capture_edited(model, tokenized, edits, 5, None, True)  # itself: treated alike
    assert_same(clean, same)


def test_zeroing_hook_z_equals_zeroing_columns_of_the_output_projection(model):
    tokenized = tokenize(model, 2)
    layer, head = 1, 2
    edited = run_edited(
        model, tokenized, make(type="head", layer=layer, head=head, method="zero_out")
    )
    hf = AutoModelForCausalLM.from_pretrained(
        model.facts["folder"], attn_implementation="eager"
    ).eval()
    attention = hf.model.layers[layer].self_attn
    with torch.no_grad():
        attention.o_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0
        for prompt, logits in zip(tokenized, edited.logits, strict=True):
            expected = hf(torch.tensor([prompt.token_ids])).logits[0, -1]
            np.testing.assert_allclose(logits, expected, atol=1e-4)
    clean = run_edited(model, tokenized)
    assert np.abs(edited.logits - clean.logits).max() > 1e-2


def test_a_pass_that_starts_at_the_edited_layer_gives_what_the_whole_pass_gives(model):
    tokenized = tokenize(model)
    _, clean = capture_clean(model, tokenized, [2], 5)
    entry = make(type="head", layer=2, head=1, method="zero_out")
    assert_same(
        run_edited(model, tokenized, entry), run_edited(model, tokenized, entry, start=(2, clean))
    )


def test_blocks_below_the_start_are_not_executed(llama):
    tokenized = tokenize(llama)
    _, clean = capture_clean(llama, tokenized, [2])
    executed = []
    handles = [
        block.ln1.register_forward_hook(partial(lambda i, *_: executed.append(i), i))
        for i, block in enumerate(llama.bridge.blocks)
    ]
    capture_edited(llama, tokenized, lambda batch: [], 100, start=(2, clean))
    for handle in handles:
        handle.remove()
    assert executed == [2]
    assert not any("forward" in vars(block) for block in llama.bridge.blocks)


@pytest.mark.parametrize("kind", ["head", "mlp", "patch", "steer", "pattern"])
def test_an_edit_that_nobody_knows_is_refused_and_not_zeroed(llama, kind):
    entry = SimpleNamespace(type=kind, method="double_out", layer=1, head_list=[1], name="x")
    entry.component = {"mlp": "mlp", "steer": "layer"}.get(kind, "head")
    donors = donors_module.Donors(tokenize(llama, 1), llama.facts, 0)
    with pytest.raises(ValueError, match="no edit is called 'double_out'"):
        hooks.prepare_edit(entry, donors)(rows_of(donors.tokenized, [0]))


@pytest.mark.parametrize("factor, expected", [(0, 0.0), (0.5, 1.5), (2, 6.0)])
def test_scale_touches_one_head_of_real_rows_and_leaves_its_input_alone(factor, expected):
    z = torch.full((2, 4, 3, 5), 3.0)
    before = z.clone()
    hook = hooks.edit_rows([1], hooks.scale(factor), batches.Rows([0, 1], [4, 2]))
    out = hook(z, None)
    assert torch.equal(z, before)
    assert (out[0, :, 1] == expected).all() and (out[1, :2, 1] == expected).all()
    assert (out[1, 2:] == 3).all() and (out[:, :, [0, 2]] == 3).all()


def test_mean_is_over_the_neutral_prompts_that_reach_a_position():
    tokenized = [
        SimpleNamespace(category=c, token_ids=[0] * n)
        for c, n in (("neutral", 3), ("neutral", 2), ("self_referent", 3))
    ]
    values = np.zeros((3, 3, 1, 1), np.float32)
    values[0, :, 0, 0], values[1, :2, 0, 0], values[2] = [1, 2, 3], [3, 6], 100
    np.testing.assert_allclose(donors_module.neutral_means(tokenized, values)[:, 0, 0], [2, 4, 3])
    change = hooks.put_means(torch.tensor([[2.0], [4.0], [3.0]]))
    out, _ = change(torch.zeros(1, 5, 1), batches.Rows([0], [5]))
    assert out[0, :, 0].tolist() == [2, 4, 3, 3, 3]


def test_resample_takes_another_prompt_of_the_same_length_and_repeats(llama):
    tokenized = tokenize(llama, 6)
    entry = make(type="head", layer=1, head=0, method="resample")
    who = donors_module.partners(entry, tokenized, seed=3)
    for i, j in enumerate(who):
        alone = sum(len(p.token_ids) == len(tokenized[i].token_ids) for p in tokenized) == 1
        assert (
            (j == -1)
            if alone
            else (j != i and len(tokenized[j].token_ids) == len(tokenized[i].token_ids))
        )
    np.testing.assert_array_equal(who, donors_module.partners(entry, tokenized, seed=3))
    assert (who != donors_module.partners(entry, tokenized, seed=4)).any()


@pytest.mark.parametrize("method", ["uniform", "random"])
@pytest.mark.parametrize("layer", [0, 1])
def test_patterns_are_causal_windowed_distributions(model, method, layer):
    tokenized = tokenize(model, 2)
    entry = make(type="pattern", layer=layer, head=1, method=method)
    edited, again = (
        run_edited(model, tokenized, entry, keep_patterns=True, batch_size=b) for b in (3, 8)
    )
    clean = run_edited(model, tokenized, keep_patterns=True, batch_size=3)
    np.testing.assert_allclose(edited.patterns[layer], again.patterns[layer], atol=1e-5)
    others = [0, 2, 3]
    np.testing.assert_array_equal(
        edited.patterns[layer][:, others], clean.patterns[layer][:, others]
    )
    window = model.facts["sliding_windows"][layer]
    for prompt, pattern in zip(tokenized, edited.patterns[layer][:, 1], strict=True):
        for q in range(len(prompt.token_ids)):
            visible = range(max(0, q + 1 - (window or q + 1)), q + 1)
            assert pattern[q].sum() == pytest.approx(1, abs=1e-5)
            assert np.flatnonzero(pattern[q]).tolist() == list(visible)
            if method == "uniform":
                np.testing.assert_allclose(pattern[q, list(visible)], 1 / len(visible), rtol=1e-6)
    assert window in (None, WINDOW)


def test_pattern_seeds_differ(llama):
    tokenized = tokenize(llama, 1)
    entry = make(type="pattern", layer=0, head=None, method="random")
    weights = [
        hooks.random_weights(rows_of(tokenized, [0]), torch.arange(3), torch.arange(3), 2, s, 0)
        for s in (1, 2)
    ]
    assert not torch.equal(*weights)
    assert entry.head_list == []


def test_a_patched_layer_makes_the_partner_compute_the_rest(model):
    tokenized = tokenize(model)
    clean = run_edited(model, tokenized)
    entry = make(type="patch", component="layer", layer=1, method="paired")
    edited = run_edited(model, tokenized, entry)
    who = donors_module.partners(entry, tokenized, 1)
    touched = who >= 0
    assert touched.sum() == 8 and {tokenized[i].category for i in np.flatnonzero(touched)} == {
        "confounder",
        "third_person",
    }
    np.testing.assert_allclose(edited.logits[touched], clean.logits[who[touched]], atol=1e-5)
    np.testing.assert_allclose(edited.logits[~touched], clean.logits[~touched], atol=1e-5)
    np.testing.assert_allclose(
        edited.arrays["entropy"][touched, 2], clean.arrays["entropy"][who[touched], 2], atol=1e-5
    )


def test_patch_from_another_model_refuses_another_shape(folders, llama, tmp_path):
    other = load_checked(save_tiny("llama", tmp_path, num_hidden_layers=2))
    entry = make(type="patch", component="mlp", layer=1, method="other_model", source="other")
    with pytest.raises(UserError, match="n_layers is 2, this model's is 3"):
        donors_module.collect_donors(
            llama, tokenize(llama), [entry], load_other=lambda source: other
        )


def test_zeroing_every_mlp_row_removes_its_contribution(llama):
    tokenized = tokenize(llama, 2)
    prepare = hooks.prepare_edit(
        make(type="mlp", layer=1, method="zero_out"),
        donors_module.Donors(tokenized, llama.facts, 0),
    )
    seen = {}
    names = ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")
    watch = [(n, lambda t, hook, n=n: seen.__setitem__(n, t.clone())) for n in names]
    ids = [p.token_ids for p in tokenized[:1]]
    run_layers(llama, ids, lambda layer, pattern: None, [*prepare(rows_of(tokenized, [0])), *watch])
    torch.testing.assert_close(seen[names[0]], seen[names[1]])


def test_steering_direction_and_its_removal():
    tokenized = [
        SimpleNamespace(category=c, span=(1, 3)) for c in ("self_referent", "neutral", "confounder")
    ]
    residual = np.zeros((3, 4, 2), np.float32)
    residual[0, 1:3], residual[1, 1:3], residual[2] = [[4, 0], [2, 2]], [[1, 1], [1, 1]], 50
    residual[:2, 0] = 99  # the BOS row is not counted
    direction = donors_module.steering_direction(tokenized, residual)
    np.testing.assert_allclose(direction, [2, 0])
    rows = batches.Rows([0], [1])
    x = torch.tensor([[[1.0, 5.0], [7.0, 7.0]]])
    added = hooks.edit_rows(None, hooks.steer(torch.tensor(direction), 3), rows)(x, None)
    assert added.tolist() == [[[7, 5], [7, 7]]]
    removed = hooks.edit_rows(None, hooks.project_out(torch.tensor(direction)), rows)(x, None)
    assert removed.tolist() == [[[0, 5], [7, 7]]] and x[0, 0].tolist() == [1, 5]


def test_steering_adds_alpha_times_the_direction_to_the_residual(llama):
    tokenized = tokenize(llama)
    site = "blocks.1.hook_resid_post"
    before = collect_activations(llama, tokenized, [site])[site]
    entry = make(type="steer", layer=1, method="add", alpha=2.5)
    prepare = hooks.prepare_edit(entry, donors_module.collect_donors(llama, tokenized, [entry]))
    seen = []
    edits = [*prepare(rows_of(tokenized, [0])), (site, lambda t, hook: seen.append(t.clone()))]
    run_layers(llama, [tokenized[0].token_ids], lambda layer, pattern: None, edits)
    n, direction = len(tokenized[0].token_ids), donors_module.steering_direction(tokenized, before)
    np.testing.assert_allclose(
        seen[0][0] - before[0, :n], np.tile(2.5 * direction, (n, 1)), atol=1e-4
    )


def test_one_head_per_row_equals_one_head_per_batch():
    z = torch.randn(3, 4, 5, 2)
    out = hooks.edit_own_head([0, 4, 2], 0.5)(z, None)
    for row, head in enumerate([0, 4, 2]):
        rows = batches.Rows([0], [4])
        expected = hooks.edit_rows([head], hooks.scale(0.5), rows)(z[row : row + 1], None)
        assert torch.equal(out[row : row + 1], expected)
