"""On a CUDA card: the kernel and the models give there what they give on the processor.

Nothing here runs without a card. The kernel's cases of test_triton.py run on the card as well.
"""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import PROJECT
from prompts import select_prompts
from rolecircuits.capture import instrument
from rolecircuits.capture.attention import capture_patterns, capture_streaming, choose_capture
from rolecircuits.capture.generation import generate_greedily
from rolecircuits.capture.streaming import Scoring, chunked_output
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import effects
from rolecircuits.edits.head_batches import HeadBatches
from rolecircuits.edits.passes import capture_clean, capture_edited
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.specs import PromptFormat
from test_triton import assert_rows, triton_kernel
from tiny_models import CONFIGS, load_checked, save_tiny, two_turns

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")

FLOAT_GAP = 2e-5  # float32 on the card and on the processor: sums in another order
LENGTHS = (150, 7, 64, 2, 65, 129)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}


def prompts(lengths=LENGTHS):
    words = "the tower by the river is older than the town and nobody knows who built it".split()
    texts = [" ".join(words[i % len(words)] for i in range(n)) for n in lengths]
    return [Prompt(f"p{i}", "neutral", -1, text) for i, text in enumerate(texts)]


def assert_close(found, expected, tolerance=FLOAT_GAP):
    assert set(found) == set(expected)
    for name, values in expected.items():
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], values, err_msg=name)
            continue
        atol = max(tolerance, 2**-10) if values.dtype == np.float16 else tolerance
        np.testing.assert_allclose(found[name], values, atol=atol, rtol=0, err_msg=name)


def random_parts(n_rows, heads, kv_heads, width, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    return (
        torch.randn(2, n_rows, n, width, generator=generator, device="cuda")
        .to(dtype)
        .transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize(
    ("n_rows", "window", "softcap"),
    [(1, None, None), (65, None, None), (300, None, None), (777, 100, None), (500, None, 3.0)],
)
def test_the_kernel_gives_the_rows_of_blocks_of_scores(n_rows, window, softcap, width, dtype):
    query, key, value = random_parts(n_rows, 4, 2, width, dtype)
    key[:, :, 0] += query[:, :1].float().mean(dim=2).sign().to(dtype)
    how = Scoring(width**-0.5, window, softcap)
    out, rows = triton_kernel.rows_and_output(query, key, value, how.scale, window, softcap)
    assert_rows(rows.cpu(), query, key, how, FLOAT_GAP)
    whole = chunked_output(query.float(), key.float(), value.float(), how)
    error = (out.float() - whole).norm() / whole.norm()
    assert error < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]


@pytest.mark.parametrize("window", [None, 1000])
def test_the_kernel_on_a_long_text(window):
    query, key, value = random_parts(4099, 8, 2, 128, torch.bfloat16)
    how = Scoring(0.2, window)
    out, rows = triton_kernel.rows_and_output(query, key, value, how.scale, window)
    again = triton_kernel.rows_and_output(query, key, value, how.scale, window)
    assert torch.equal(out, again[0]) and torch.equal(rows.nan_to_num(), again[1].nan_to_num())
    assert_rows(rows.cpu(), query, key, how, 5e-5)
    whole = chunked_output(query.float(), key.float(), value.float(), how)
    assert (out.float() - whole).norm() / whole.norm() < 5e-3


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_card_measures_what_the_processor_measures(folders, name):
    plain, card = (load_checked(folders[name], device=device) for device in ("cpu", "cuda"))
    tokenized = tokenize_prompts(prompts(), plain.tokenizer)
    turns = two_turns(tokenized)
    expected = capture_patterns(plain, tokenized, turns=turns).arrays
    assert card.facts["device"] == "cuda"
    assert card.facts["sliding_windows"] == plain.facts["sliding_windows"]
    assert_close(capture_patterns(card, tokenized, turns=turns).arrays, expected)
    assert_close(capture_streaming(card, tokenized, batch_size=4, turns=turns).arrays, expected)
    assert choose_capture("auto", "none", tokenized, card.facts, 64)[0] == "streaming"


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_chat_prompts_share_their_prefix_on_the_card(folders, form):
    plain, card = (load_checked(folders["llama"], device=device) for device in ("cpu", "cuda"))
    tokenized = tokenize_prompts(
        select_prompts(per_category=4), plain.tokenizer, PromptFormat(form)
    )
    expected = capture_patterns(plain, tokenized).arrays
    assert_close(capture_streaming(card, tokenized).arrays, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_on_the_card(folders, dtype):
    for name in ("mistral", "gemma2"):
        gaps = instrument.check_streaming(load_checked(folders[name], device="cuda", dtype=dtype))
        assert gaps["kernel_gap"] < 2e-5
        assert 0 < gaps["path_gap"] < instrument.PATH_TOLERANCE[dtype]


@contextlib.contextmanager
def little_memory(mib):
    """Inside the block the card has only so much memory beside what is taken."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = (torch.cuda.memory_reserved() + mib * 2**20) / total
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("capture", [capture_patterns, capture_streaming])
def test_batches_are_halved_when_the_card_is_full(folders, capture):
    card = load_checked(folders["llama"], device="cuda")
    tokenized = tokenize_prompts(prompts([150] * 64), card.tokenizer)
    whole = capture(card, tokenized, batch_size=64)
    assert whole.batch_size == 64
    mib = 24 if capture is capture_patterns else 6
    with little_memory(mib):
        halved = capture(card, tokenized, batch_size=64)
    assert halved.batch_size < 64 and not halved.failed
    assert_close(halved.arrays, whole.arrays)


def zero_heads(batch):
    return [("blocks.1.attn.hook_z", lambda z, hook: z * 0)]


def test_edits_and_answers_on_the_card(folders):
    found = []
    for device in ("cpu", "cuda"):
        loaded = load_checked(folders["mistral"], device=device)
        tokenized = tokenize_prompts(select_prompts(per_category=3), loaded.tokenizer)
        base, clean = capture_clean(loaded, tokenized, [1])
        edited = capture_edited(loaded, tokenized, zero_heads, start=(1, clean))
        batches = HeadBatches(loaded, tokenized, clean, effects.BaseDistribution(base.logits))
        means = torch.randn(9, loaded.n_heads, 8, generator=torch.Generator().manual_seed(0))
        arrays = {f"base {name}": values for name, values in base.arrays.items()}
        arrays |= {f"edited {name}": values for name, values in edited.arrays.items()}
        arrays |= {"logits": base.logits, "edited logits": edited.logits}
        for kind, how in (("zero", {"factor": 0.0}), ("mean", {"means": means})):
            measured = batches.measure(1, range(loaded.n_heads), **how)
            arrays |= {f"{kind} {name}": values for name, values in measured.items()}
        found.append((arrays, generate_greedily(loaded, tokenized, 6)))
    (expected, answers), (arrays, card_answers) = found
    assert_close(arrays, expected, 2e-4)
    assert card_answers == answers


def test_a_model_on_the_processor_stays_there(folders):
    loaded = load_checked(folders["llama"], device="cpu")
    assert {p.device.type for p in loaded.bridge.original_model.parameters()} == {"cpu"}
    assert loaded.bridge.cfg.device == "cpu"
    split = load_checked(folders["llama"], device_map="auto")
    tokenized = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    expected = capture_clean(loaded, tokenized, [1])[0]
    found = capture_clean(split, tokenized, [1])[0]
    assert_close(found.arrays, expected.arrays)
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-4)


def run_script(name, *flags):
    done = subprocess.run(
        [sys.executable, PROJECT / name, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_script_chooses_the_card_and_its_run_comes_back(folders, tmp_path):
    flags = ["--model_id", folders["mistral"], "--prompts_per_category", "3", "--output_dir"]
    done = run_script("activation_analysis.py", *flags, str(tmp_path))
    assert "Warning" not in done.stderr
    run = tmp_path / "latest_run"
    config = json.loads((run / "experiment_config.json").read_text())
    assert config["model"]["device"] == "cuda" and config["capture"]["method"] == "streaming"
    assert config["determinism"]["gpu"] == torch.cuda.get_device_name()
    assert config["determinism"]["tf32"] is False
    assert config["determinism"]["cublas_workspace_config"] == ":4096:8"
    done = run_script("activation_analysis.py", "--repeat", str(run))
    assert "bit-identical" in done.stdout
