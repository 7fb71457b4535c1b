"""A model split over memory and disk gives the numbers of the whole model."""

import json

import numpy as np
import pytest

from prompts import select_prompts
from rolecircuits.capture.instrument import check_streaming
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits.passes import capture_clean, capture_edited
from rolecircuits.inputs.errors import UserError
from rolecircuits.models.devices import read_device_map
from tiny_models import load_checked, save_tiny

HALVES = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}
HALVES |= {
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


def captured(loaded):
    prompts = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    whole, clean = capture_clean(loaded, prompts, [1, 2])

    def zero(z, hook):
        return z * 0

    edits = [("blocks.2.attn.hook_z", zero)]
    resumed = capture_edited(loaded, prompts, lambda batch: edits, start=(2, clean))
    return whole, resumed


def test_a_split_model_gives_the_same_attention(folder, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(HALVES))
    split = load_checked(folder, device_map=str(tmp_path / "map.json"))
    devices = {str(p.device) for p in split.bridge.original_model.parameters()}
    assert devices == {"cpu", "meta"}, "half of the weights are not in memory"
    assert "'model.layers.1': 'disk'" in split.facts["device"]
    # the split model computes logits of more positions, and each token for every prompt: a wider
    # product may round differently
    for whole, parts in zip(captured(load_checked(folder)), captured(split), strict=True):
        np.testing.assert_allclose(whole.logits, parts.logits, atol=1e-5)
        for name in whole.arrays:
            if whole.arrays[name].dtype.kind == "f":
                np.testing.assert_allclose(whole.arrays[name], parts.arrays[name], atol=1e-6)
            else:
                np.testing.assert_array_equal(whole.arrays[name], parts.arrays[name])


def test_auto_on_a_machine_without_gpu_is_the_cpu(folder):
    loaded = load_checked(folder, device_map="auto")
    assert {str(p.device) for p in loaded.bridge.original_model.parameters()} == {"cpu"}


def test_a_split_model_streams(folder, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(HALVES))
    loaded = load_checked(folder, device_map=str(tmp_path / "map.json"))
    assert check_streaming(loaded)["path_gap"] < 1e-4


def test_the_first_module_must_be_in_memory(folder, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(HALVES | {"model.embed_tokens": "disk"}))
    with pytest.raises(UserError, match="the embedding is on disk"):
        load_checked(folder, device_map=str(tmp_path / "map.json"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", "must be an object"),
        ("{}", "must be an object"),
        ('{"lm_head": "gpu"}', "lm_head is gpu; allowed are cpu, disk"),
        ('{"lm_head": 99}', "lm_head is 99"),
        ('{"lm_head": true}', "lm_head is True"),
        ("{", "not JSON"),
    ],
)
def test_bad_maps_are_refused(content, named, tmp_path):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match=named):
        read_device_map(str(tmp_path / "map.json"))


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="is none of auto, balanced, balanced_low_0, sequential, and no JSON file"
    ):
        read_device_map("halves")
    with pytest.raises(UserError, match="no such file"):
        read_device_map(str(tmp_path / "none.json"))
