"""Training: the answers alone are learnt, a stop changes nothing, the base comes back exactly."""

import pytest
import torch

from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.tuning.train import Recipe, Tuner, answer_loss, check_recipe, make_batches
from tiny_models import save_tiny

RECIPES = [Recipe(lr=1e-2, batch=4), Recipe("full", lr=1e-3, batch=4)]
PREFIX = [5, 6, 7, 8]


@pytest.fixture(autouse=True)
def _needs_peft():
    pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tuning") / "model")


def load(model_id):
    return read_weights(open_model(ModelSpec(str(model_id), device="cpu")))


@pytest.fixture
def loaded(folder):
    return load(folder)


def examples(n=12, seed=0):
    """Token ids with a common beginning; the last 2 to 4 are the answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        own = torch.randint(9, 40, (5 + i % 3,), generator=generator).tolist()
        rows.append((PREFIX + own, len(PREFIX) + 3))
    return rows


def batches(recipe, first, last, seed=3):
    rows = examples()
    return [[rows[i] for i in own] for _, own in make_batches(len(rows), recipe, seed, first, last)]


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_the_loss_is_the_mean_over_the_answers_tokens_alone(loaded):
    batch = examples(4)
    with torch.no_grad():
        found, by_hand = float(answer_loss(loaded.model, batch)), []
        for ids, n_prompt in batch:
            log_p = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            by_hand += [-float(log_p[at - 1, ids[at]]) for at in range(n_prompt, len(ids))]
    assert found == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    assert len(by_hand) == sum(len(ids) - n for ids, n in batch)


def test_the_shared_beginning_does_not_change_the_gradient(loaded, monkeypatch):
    loaded.model.requires_grad_(True)
    answer_loss(loaded.model, examples(4)).backward()
    found = {n: p.grad.clone() for n, p in loaded.model.named_parameters()}
    loaded.model.zero_grad()
    monkeypatch.setattr(
        "rolecircuits.tuning.train.shared_prefix", lambda *args: torch.enable_grad()
    )
    answer_loss(loaded.model, examples(4)).backward()
    for name, parameter in loaded.model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.tuning)
def test_a_stop_between_two_doses_changes_no_bit(loaded, recipe, tmp_path):
    with Tuner(loaded, recipe, 3) as tuner:
        whole = tuner.train(batches(recipe, 0, 6))
        wanted = weights_of(loaded.model)
    state = tmp_path / "state.safetensors"
    with Tuner(loaded, recipe, 3) as tuner:
        first = tuner.train(batches(recipe, 0, 2))
        tuner.save_state(state)
        with tuner.tuned(0.5):  # a measurement in between
            pass
    with Tuner(loaded, recipe, 99) as tuner:  # another seed: all that counts is in the state
        tuner.load_state(state)
        assert tuner.step == 2
        rest = tuner.train(batches(recipe, 2, 6))
        assert equal(weights_of(loaded.model), wanted)
    assert first + rest == whole
    assert len(set(whole)) > 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.tuning)
def test_the_base_comes_back_to_the_last_bit(loaded, folder, recipe):
    with Tuner(loaded, recipe, 3) as tuner:
        tuner.train(batches(recipe, 0, 3))
        with pytest.raises(RuntimeError), tuner.tuned():
            raise RuntimeError
        tuned = weights_of(loaded.model)
        with tuner.tuned(0.3):
            pass
        assert equal(weights_of(loaded.model), tuned)
    assert equal(weights_of(loaded.model), weights_of(load(folder).model))


def test_half_the_change_is_half_the_change(loaded):
    recipe, name = RECIPES[1], "model.layers.0.self_attn.q_proj.weight"
    base = weights_of(loaded.model)[name]
    with Tuner(loaded, recipe, 3) as tuner:
        tuner.train(batches(recipe, 0, 3))
        last = weights_of(loaded.model)[name]
        with tuner.tuned(0.5):
            half = weights_of(loaded.model)[name]
    assert (last - base).abs().max() > 1e-4
    assert torch.allclose(half, (base + last) / 2, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_kept_adapter_is_the_model_that_was_measured(loaded, scale, tmp_path):
    with Tuner(loaded, RECIPES[0], 3) as tuner:
        tuner.train(batches(RECIPES[0], 0, 3))
        tuner.save_adapter(tmp_path / "adapter", scale)
        with tuner.tuned(scale):
            measured = {
                name.replace("base_layer.", ""): weight
                for name, weight in weights_of(loaded.model).items()
                if "lora_" not in name
            }
    kept = weights_of(load(tmp_path / "adapter").model)
    assert equal(kept, measured)
    assert not equal(kept, weights_of(loaded.model))


def test_layers_that_a_model_lacks_are_refused(loaded):
    recipe = Recipe(targets=("q_proj", "no_such_layer"))
    with pytest.raises(UserError, match="--targets no_such_layer.*q_proj"):
        check_recipe(loaded.model, recipe)
    check_recipe(loaded.model, Recipe())


def test_a_state_of_another_recipe_is_refused(loaded, tmp_path):
    with Tuner(loaded, RECIPES[0], 3) as tuner:
        tuner.train(batches(RECIPES[0], 0, 1))
        tuner.save_state(tmp_path / "state.safetensors")
    other = Recipe(lr=1e-2, targets=("k_proj",))
    with Tuner(loaded, other, 3) as tuner, pytest.raises(UserError, match="another model or"):
        tuner.load_state(tmp_path / "state.safetensors")


def test_every_epoch_is_a_permutation_of_its_own():
    recipe, found = Recipe(batch=4), {}
    for epoch, chosen in make_batches(12, recipe, 3, 0, 9):
        found.setdefault(epoch, []).extend(chosen.tolist())
    assert list(found) == [0, 1, 2]
    assert all(sorted(order) == list(range(12)) for order in found.values())
    assert found[0] != found[1]
    late = [own.tolist() for _, own in make_batches(12, recipe, 3, 7, 9)]
    assert late == [own.tolist() for _, own in list(make_batches(12, recipe, 3, 0, 9))[7:]]


def test_the_seed_decides(loaded):
    losses = {}
    for seed in (3, 3, 4):
        with Tuner(loaded, RECIPES[0], seed) as tuner:
            own = tuner.train(batches(RECIPES[0], 0, 3, seed))
        losses.setdefault(seed, []).append(own)
    assert losses[3][0] == losses[3][1] != losses[4][0]
