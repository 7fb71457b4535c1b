"""docs/MODELS.md: a sample of its rows measured again, and that it is about this transformers.

The whole table is `make models`.
"""

import json
import sys
from importlib.metadata import version

import numpy as np
import pytest

from conftest import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))

import architectures  # noqa: E402
import model_checks  # noqa: E402
import models_table  # noqa: E402

from rolecircuits.stats.entropy import attention_entropy, sinkfree_entropy  # noqa: E402

STORED = json.loads((PROJECT / "docs" / "models.json").read_text(encoding="utf-8"))
MEASURED = ("capture", "streaming")
SAMPLE = {
    "llama (sliding_window that its code ignores)": {"capture": "yes", "streaming": "yes"},
    "mistral": {"capture": "yes", "streaming": "yes"},
    "phi3 (longrope)": {"capture": "yes", "streaming": "yes"},
    "gemma2": {"capture": "yes", "streaming": "yes"},
    "gpt_oss": {"capture": "yes", "streaming": "yes"},
    "llama4_text": {"capture": "yes", "streaming": "yes"},
    "gpt_neo": {"capture": "yes", "streaming": "refused", "patterns": "refused"},
    "falcon (new decoder, not multi-query)": {"capture": "yes", "heads": "refused"},
    "deepseek_v3": {"capture": "yes", "streaming": "yes", "heads": "refused"},
    "gpt2": {"capture": "yes", "heads": "yes", "patterns": "yes", "generation": "yes"},
    "opt": {"bfloat16": "yes"},
    "granite_swa": {"capture": "yes", "streaming": "yes", "heads": "refused"},
    "mimo_v2_flash": {"capture": "yes", "streaming": "yes"},
    "deepseek_v32": {"capture": "yes", "streaming": "yes"},
    "deepseek_v32 (8 keys a row)": {"capture": "refused"},
    "blenderbot (encoder of fewer layers)": {"capture": "yes"},
    "jetmoe": {"heads": "refused"},
    "bart": {"capture": "yes", "heads": "refused"},
    "diffllama": {"capture": "refused"},
    "mamba": {"capture": "refused"},
    "qwen3_next": {"capture": "refused"},
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_is_as_expected(name):
    found = model_checks.check_row(name, list(SAMPLE[name]))
    said = {check: found[check] for check in SAMPLE[name]}
    assert {check: c["verdict"] for check, c in said.items()} == SAMPLE[name], said


@pytest.mark.parametrize("name", SAMPLE)
def test_the_sample_is_what_the_table_says(name):
    row = STORED["rows"][name]
    assert {check: row[check]["verdict"] for check in SAMPLE[name]} == SAMPLE[name]


def test_the_table_is_of_the_installed_transformers():
    """A new version fails here until `make models` has been run again."""
    assert list(STORED["rows"]) == list(architectures.rows())
    keys = {name.split(" (")[0] for name in STORED["rows"]}
    assert keys == set(architectures.names())
    assert STORED["versions"]["transformers"] == version("transformers")


def test_nothing_is_wrong_and_nothing_crashes():
    bad = {
        (name, check): row[check]["why"]
        for name, row in STORED["rows"].items()
        for check in model_checks.CHECKS
        if row[check]["verdict"] in ("WRONG", "CRASH")
    }
    assert not bad


def test_a_refusal_has_a_reason():
    for name, row in STORED["rows"].items():
        for check in model_checks.CHECKS:
            cell = row[check]
            assert cell["verdict"] in models_table.VERDICTS
            assert cell["why"] or cell["verdict"] == "yes", (name, check)
            assert "\n" not in cell["why"] and "/tmp" not in cell["why"], (name, check)


def test_the_document_is_what_the_numbers_give():
    text = (PROJECT / "docs" / "MODELS.md").read_text(encoding="utf-8")
    assert text == models_table.render(STORED)


def causal_rows(rng, n=6, heads=2):
    pattern = np.tril(rng.uniform(0.1, 1, (heads, n, n)))
    return pattern / pattern.sum(-1, keepdims=True)


def arrays_of(pattern):
    """What the project says of one text and one layer, by its own functions."""
    sinkfree = np.full(pattern.shape[:2], np.nan)
    sinkfree[:, 2:] = sinkfree_entropy(pattern)[:, 2:]
    return {
        "entropy": attention_entropy(pattern)[None, None],
        "entropy_sinkfree": sinkfree[None, None],
        "sink_mass": pattern[None, None, ..., 0],
        "final_row": pattern[None, None, :, -1],
        "visible_keys": np.arange(1, pattern.shape[-1] + 1)[None],
    }


def test_equal_arrays_are_equal_and_each_kind_of_error_is_found():
    pattern = causal_rows(np.random.default_rng(0))
    arrays = arrays_of(pattern)
    worst, mean, wrong = model_checks.compare_arrays(arrays, [[pattern]], [False])
    assert worst < 1e-12 and mean < 1e-12 and "visible keys" not in wrong
    for name in ("entropy", "entropy_sinkfree", "sink_mass"):
        off = arrays | {name: arrays[name] + 2e-5}
        worst, _, where = model_checks.compare_arrays(off, [[pattern]], [False])
        assert worst > model_checks.GAP and where.startswith(f"{name} of layer 0")
    one_less = arrays | {"visible_keys": np.minimum(arrays["visible_keys"], 5)}
    assert "visible keys" in model_checks.compare_arrays(one_less, [[pattern]], [False])[2]
    none = arrays | {"entropy_sinkfree": np.full_like(arrays["entropy"], np.nan)}
    assert model_checks.compare_arrays(none, [[pattern]], [False])[0] == np.inf


def test_a_learned_sink_is_a_key_of_its_own():
    pattern = causal_rows(np.random.default_rng(1)) * 0.6
    found = model_checks.reduce_rows(pattern, has_sink=True)
    whole = np.concatenate([np.full((*pattern.shape[:2], 1), 0.4), pattern], axis=-1)
    np.testing.assert_allclose(found["entropy"], attention_entropy(whole))
    np.testing.assert_allclose(
        found["entropy_sinkfree"][:, 1:], attention_entropy(pattern / 0.6)[:, 1:]
    )
    assert found["visible_keys"].tolist() == [2, 3, 4, 5, 6, 7]


def test_every_kind_of_layer_is_kept():
    kinds = {"layer_types": list("ssssfssssf"), "mlp": list("dmmmmmmmmm")}
    kept = architectures.kept_layers(kinds, 10)
    assert kept == [0, 1, 9]  # (s, d), (s, m), and the last one (f, m)
    assert architectures.kept_layers({}, 24) == [0, 0, 0]
    assert len(architectures.kept_layers({"layer_types": ["f"] * 12}, 12)) == 3


def test_a_process_that_dies_is_a_crash(monkeypatch):
    monkeypatch.setattr(models_table, "check_row", lambda name: models_table.os._exit(3))
    found = models_table.run_all(["gpt2"], 1, lambda name, row: None)
    assert found["gpt2"]["capture"] == model_checks.cell("CRASH", "its process ended with 3")


def test_an_installer_is_a_crash_and_not_started(monkeypatch):
    def install(name):
        model_checks.subprocess.check_call([sys.executable, "-m", "pip", "--version"])

    def row(name):
        return {check: model_checks.judged(install, name) for check in model_checks.CHECKS}

    monkeypatch.setattr(models_table, "check_row", row)
    found = models_table.run_all(["gpt2"], 1, lambda name, row: None)
    assert found["gpt2"]["capture"]["verdict"] == "CRASH"
    assert "an installer was started" in found["gpt2"]["capture"]["why"]
