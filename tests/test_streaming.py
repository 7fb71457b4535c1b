"""Streaming against patterns: the same arrays, on every architecture and where digits are lost."""

import functools
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import activation_analysis
import output_manager
from prompts import select_prompts
from rolecircuits.capture import attention, instrument, masks, recorder, streaming
from rolecircuits.capture import tokens as prompt_tokens
from rolecircuits.capture.attention import TURN_MASS, capture_patterns, capture_streaming
from rolecircuits.capture.batches import make_batches
from rolecircuits.capture.check_texts import streaming_batches
from rolecircuits.capture.model_pass import Call
from rolecircuits.capture.recorder import check_rows
from rolecircuits.capture.streaming import (
    Scoring,
    block_means,
    chunked_rest,
    join_sink,
    sink_scores,
)
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits.passes import capture_clean
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.stats import entropy as entropies
from rolecircuits.stats.masses import Places
from tiny_models import CONFIGS, WINDOW, load_checked, save_tiny, two_turns

ROWS = ("entropy", "entropy_sinkfree", "sink_mass")
MASSES = ("first_mass", "last_mass", "edge_mass", "segment_mass", "final_row", TURN_MASS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function (architecture, dtype) -> LoadedModel; each is loaded once."""

    @functools.cache
    def load(name, dtype="float32"):
        return load_checked(folder(name), device="cpu", dtype=dtype)

    @functools.cache
    def folder(name):
        return save_tiny(name, tmp_path_factory.mktemp(name))

    return load


def long_prompts():
    words = (
        "the tower by the river is older than the town and nobody knows who built it or why".split()
    )
    texts = [" ".join(words[i % len(words)] for i in range(n)) for n in (60, 7, 31, 2)]
    return [Prompt(f"p{i}", "neutral", -1, text) for i, text in enumerate(texts)]


def assert_same_arrays(streamed, patterns, tolerance):
    assert set(streamed) == set(patterns)
    for name, expected in patterns.items():
        assert streamed[name].dtype == expected.dtype
        if name in ROWS + MASSES:
            atol = max(tolerance, 2**-10) if expected.dtype == np.float16 else tolerance
            np.testing.assert_allclose(streamed[name], expected, atol=atol, rtol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(streamed[name], expected)


@pytest.mark.parametrize(("block", "held"), [(5, 0), (256, 2**27)])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_streaming_gives_the_arrays_of_the_patterns(models, name, block, held, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", block)
    set_tiles(monkeypatch, (block, block))
    monkeypatch.setitem(recorder.HELD_BYTES, False, held)  # as on a card
    tiny = models(name)
    tokenized = tokenize_prompts(long_prompts(), tiny.tokenizer)
    turns = two_turns(tokenized)
    patterns = capture_patterns(tiny, tokenized, turns=turns).arrays
    streamed = capture_streaming(tiny, tokenized, turns=turns).arrays
    assert patterns["n_tokens"].max() > 10 * WINDOW and patterns[TURN_MASS].shape[3:] == (2, 6)
    assert_same_arrays(streamed, patterns, 1e-5)


@pytest.mark.parametrize(("layers_held", "groups"), [(0, 1), (1, 1), (1.5, 2), (99, 4)])
def test_layers_of_one_kind_are_reduced_together_until_they_are_many(
    models, layers_held, groups, monkeypatch
):
    tiny, seen = models("llama"), []
    tokenized = tokenize_prompts(long_prompts()[:2], tiny.tokenizer)
    monkeypatch.setattr(recorder, "_bytes", lambda held: 1)
    monkeypatch.setitem(recorder.HELD_BYTES, False, layers_held)
    reduce = recorder.LayerRecorder.reduce

    def note(self, layers, *given):
        seen.append(layers)
        reduce(self, layers, *given)

    monkeypatch.setattr(recorder.LayerRecorder, "reduce", note)
    capture_streaming(tiny, tokenized)
    assert sum(seen, []) == list(range(tiny.n_layers))
    assert {len(layers) for layers in seen[:-1]} <= {min(groups, tiny.n_layers)}
    assert len(seen) == -(-tiny.n_layers // groups)


@pytest.mark.parametrize("other", [(4, 1, 8), (4, 2, 16)])
def test_layers_of_other_widths_are_not_reduced_together(other, monkeypatch):
    """As in Gemma 4, whose full layers have other heads than its sliding ones."""
    monkeypatch.setitem(recorder.HELD_BYTES, False, 2**30)
    places, seen = Places(np.array([[0, 5], [0, 3]])), []

    def note(layers, arrays):
        seen.append((layers, arrays))

    keep = recorder.LayerRecorder([(None, None)] * 4, [5, 3], places, note)
    generator = torch.Generator().manual_seed(0)
    for layer, (heads, groups, width) in enumerate([(4, 2, 8), (4, 2, 8), other, (4, 2, 8)]):
        query, key, value = (
            torch.randn(2, n, 5, width, generator=generator) for n in (heads, groups, groups)
        )
        keep.attend(layer, Call(query, key, value, None, 0.5))
    assert [layers for layers, _ in seen] == [[0, 1], [2], [3]]
    assert all(arrays["entropy"].shape[1:] == (2, 4, 5) for _, arrays in seen)


def test_mlps_take_the_tokens_in_blocks_and_are_left_as_they_were(models):
    plain = models("llama").model
    mlp = plain.base_model.layers[0].mlp
    hidden = torch.randn(
        2, 21, plain.config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    seen = []
    handle = mlp.gate_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[0])
    )
    with torch.inference_mode():
        expected = mlp(hidden)
        seen.clear()
        with recorder.mlps_in_blocks(plain, rows=10):
            found = mlp(hidden)
            mlp(hidden[:1, :19])  # fewer than two blocks: whole
    handle.remove()
    assert seen == [10, 10, 10, 10, 2, 1]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert "forward" not in vars(mlp)


def make_scores(n_query, sink, groups=2, seed=0):
    """Queries and keys [1, head, query, 8]; scores with key 0 exceed the others by about `sink`."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2 * groups, n_query, 8, generator=generator)
    key = torch.randn(1, 2, n_query, 8, generator=generator)
    query[..., 0] = 1.0
    key[:, :, 0, 0] = sink
    return query, key


def exact_rows(query, key, scale, window, softcap=None):
    """The arrays of `join_sink` from patterns in float64."""
    n_query, groups = query.shape[2], query.shape[1] // key.shape[1]
    scores = (
        query.double() @ key.double().repeat_interleave(groups, 1).transpose(2, 3) * scale
    ).numpy()
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    row, column = np.arange(n_query)[:, None], np.arange(n_query)
    seen = (column <= row) & (column > row - (window or n_query))
    scores = np.where(seen, scores, -np.inf)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    visible = entropies.visible_keys(n_query, [window])[0]
    few = entropies.sinkfree_keys(visible[None])[0] < 2
    free = np.where(
        few, np.nan, entropies.sinkfree_entropy(np.where(few[:, None], 1 / n_query, pattern))
    )
    return {
        "entropy": entropies.attention_entropy(pattern),
        "entropy_sinkfree": free,
        "sink_mass": pattern[..., 0],
    }, visible


def block_rest(query, key, how):
    """(L', H') of the way on the CPU."""
    return block_means(query, key, None, how)[:2]


# (rows, keys) of a tile: one tile; many of both, ends inside; a row; whole texts together
TILES = [(384, 1024), (14, 5), (1, 64), (37, 7), (500, 37)]


def set_tiles(monkeypatch, tile):
    """Set the size of tiles, so that tasks are as many as they are with long texts."""
    for name, size in zip(("TILE_ROWS", "TILE_KEYS"), tile, strict=True):
        monkeypatch.setattr(streaming, name, size)


@pytest.fixture
def three_threads():
    """Three threads of torch, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 300])
@pytest.mark.parametrize(
    ("rest", "tile"), [(chunked_rest, TILES[0]), *((block_rest, tile) for tile in TILES)]
)
@pytest.mark.usefixtures("three_threads")
def test_both_kernels_equal_float64_patterns(rest, tile, window, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 16)
    set_tiles(monkeypatch, tile)
    query, key = make_scores(37, 2.0)
    how = Scoring(0.5, window)
    expected, visible = exact_rows(query, key, 0.5, window)
    found = [part.numpy() for part in (sink_scores(query, key, how), *rest(query, key, how))]
    for name, values in join_sink(*found, visible).items():
        np.testing.assert_allclose(values, expected[name], atol=3e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("window", [None, 1, 5, 300])
def test_the_output_is_that_of_the_patterns(window, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 16)
    query, key = make_scores(37, 4.0)
    for width in (8, 12):  # a value may be wider than a key
        value = torch.randn(1, 2, 37, width, generator=torch.Generator().manual_seed(1))
        whole = (0, 37)
        how = Scoring(0.5, window)
        pattern = streaming.block_scores(query, key, whole, whole, how).softmax(dim=-1)
        expected = pattern @ value.repeat_interleave(2, 1)
        out = streaming.plain_output(query, key, value, how)
        np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)


SINKS = {
    "none": None,
    "of heads": torch.tensor([-1.0, 0.0, 1.0, 5.0]),
    "of rows": torch.linspace(-3, 3, 2 * 4 * 37).view(2, 4, 37, 1),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("sinks", list(SINKS))
@pytest.mark.parametrize(
    "scoring",
    [{}, {"window": 1}, {"window": 6}, {"chunk": 1}, {"chunk": 8}, {"softcap": 2.0, "window": 20}],
)
@pytest.mark.usefixtures("three_threads")
def test_attention_on_the_cpu_is_that_of_float64_patterns(scoring, sinks, tile, monkeypatch):
    """Output (values wider than keys), entropies and masses of segments, two prompts at once."""
    set_tiles(monkeypatch, tile)
    both = [make_scores(37, 2.0, seed=seed) for seed in (0, 1)]
    query, key = (torch.cat(parts) for parts in zip(*both, strict=True))
    value = torch.randn(2, 2, 37, 12, generator=torch.Generator().manual_seed(1))
    how = Scoring(0.7, sinks=SINKS[sinks], **scoring)
    segment = torch.arange(37) % 3
    inside = (segment[:, None] == torch.arange(3)).float().expand(2, -1, -1)
    assert not torch.is_inference_mode_enabled()
    out, parts = streaming.attend_rows(query, key, value, how, inside=inside)

    scores = query.double() @ key.double().repeat_interleave(2, 1).transpose(2, 3) * how.scale
    scores = how.cap(scores).masked_fill(~how.seen((0, 37), (0, 37), "cpu"), float("-inf"))
    whole = torch.softmax(scores, dim=-1)
    if how.sinks is not None:
        column = masks.sink_column(how.sinks).double().expand(2, 4, 37, 1)
        pattern = torch.softmax(torch.cat([column, scores], dim=-1), dim=-1)[..., 1:]
        rest = whole
    else:
        pattern = whole
        rest = torch.softmax(scores[:, :, 1:, 1:], dim=-1)
    expected = pattern @ value.double().repeat_interleave(2, 1)
    np.testing.assert_allclose(out, expected, atol=3e-6, rtol=0)
    np.testing.assert_allclose(
        parts["rest_entropy"], torch.special.entr(rest).sum(-1), atol=3e-6, rtol=0
    )
    log_sum = torch.logsumexp(scores[..., how.first :, how.first :], dim=-1)
    np.testing.assert_allclose(parts["log_sum"], log_sum, atol=3e-6, rtol=0)
    np.testing.assert_allclose(parts["segment_rows"], whole @ inside[0].double(), atol=3e-6)
    without, same = streaming.attend_rows(query, key, value, how, False, inside)
    assert without is None
    for name, values in same.items():
        np.testing.assert_allclose(values, parts[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sinks", ["none", "of heads"])
def test_one_token_attends_to_itself(sinks):
    query, key = make_scores(1, 2.0)
    out, parts = streaming.attend_rows(query, key, key, Scoring(1.0, sinks=SINKS[sinks]))
    n_rows = 0 if sinks == "none" else 1
    assert parts["log_sum"].shape == parts["rest_entropy"].shape == (1, 4, n_rows)
    np.testing.assert_allclose(parts["rest_entropy"], 0, atol=1e-6)
    if sinks == "none":
        np.testing.assert_allclose(out, key.repeat_interleave(2, 1), atol=1e-6)


@pytest.mark.usefixtures("three_threads")
def test_tasks_are_shared_by_threads_that_have_one_thread_each():
    done, together = [], threading.Barrier(3, timeout=60)

    def work(tasks):
        together.wait()
        for task in tasks:
            torch.ones(2).sum()  # a thread takes its number of threads at its first operation
            done.append((task, torch.get_num_threads()))
            assert torch.is_inference_mode_enabled()

    streaming.run_in_threads(work, range(50))
    assert sorted(done) == [(task, 1) for task in range(50)]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_thread_is_raised_and_torch_has_its_threads_again(fails):
    caller, done = threading.current_thread(), []

    def work(tasks):
        for task in tasks:
            if (threading.current_thread() is caller) == fails:
                raise ValueError("this thread's")
            time.sleep(0.005)
            done.append(task)

    with pytest.raises(ValueError, match="this thread's"):
        streaming.run_in_threads(work, range(50))
    assert torch.get_num_threads() == 3
    assert len(done) < 25  # the others do not take what is left


@pytest.mark.parametrize("sink", [10.0, 20.0, 60.0, -60.0])
def test_a_sink_that_holds_nearly_all_mass_costs_no_digits(sink):
    query, key = make_scores(50, sink)
    expected, visible = exact_rows(query, key, 1.0, None)
    how = Scoring(1.0)
    found = [part.numpy() for part in (sink_scores(query, key, how), *block_rest(query, key, how))]
    got = join_sink(*found, visible)
    if sink == 20.0:
        assert (
            np.median(1 - expected["sink_mass"][..., 2:]) < 1e-5
        )  # (H + m ln m) / r + ln r would be off by more than 0.1
    np.testing.assert_allclose(
        got["entropy_sinkfree"], expected["entropy_sinkfree"], atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(got["entropy"], expected["entropy"], atol=1e-5, rtol=1e-4)


def test_no_mass_beside_the_sink_leaves_the_sinkfree_entropy_undefined():
    log_sum, entropy = np.array([-200.0, -200.0, -60.0]), np.array([0.0, 0.5, 0.7])
    got = join_sink(np.zeros(4), log_sum, entropy, np.arange(1, 5))
    np.testing.assert_array_equal(np.isnan(got["entropy_sinkfree"]), [True, True, True, False])
    np.testing.assert_allclose(got["sink_mass"], 1, atol=1e-7)
    np.testing.assert_allclose(got["entropy"], 0, atol=1e-20)


def test_two_equal_keys_give_ln_2_and_the_window_drops_the_sink():
    got = join_sink(np.zeros(3), np.zeros(2), np.array([0.0, np.log(2)]), np.array([1, 2, 2]))
    np.testing.assert_allclose(got["entropy"], [0, np.log(2), np.log(2)], atol=1e-7)
    np.testing.assert_allclose(got["sink_mass"], [1, 0.5, 0], atol=1e-7)
    np.testing.assert_allclose(got["entropy_sinkfree"], [np.nan, np.nan, np.log(2)], atol=1e-7)


@pytest.mark.parametrize("rest", [chunked_rest, block_rest])
def test_softcapped_scores_equal_float64_patterns(rest):
    query, key = make_scores(30, 6.0)
    expected, visible = exact_rows(query, key, 1.0, 7, softcap=2.0)
    how = Scoring(1.0, 7, 2.0)
    found = [p.numpy() for p in (sink_scores(query, key, how), *rest(query, key, how))]
    np.testing.assert_allclose(
        join_sink(*found, visible)["entropy"], expected["entropy"], atol=3e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_stream_float32_entropies(models, dtype):
    short = models("llama", dtype)
    gaps = instrument.check_streaming(short)
    assert gaps["kernel_gap"] < 1e-5  # float32 rows although the model is short
    assert 1e-5 < gaps["path_gap"] < instrument.PATH_TOLERANCE[dtype]
    query, key = make_scores(50, 4.0)
    query, key = query.to(getattr(torch, dtype)), key.to(getattr(torch, dtype))
    expected, visible = exact_rows(query, key, 0.3, None)
    how = Scoring(0.3)
    found = [p.numpy() for p in (sink_scores(query, key, how), *block_rest(query, key, how))]
    np.testing.assert_allclose(
        join_sink(*found, visible)["entropy"], expected["entropy"], atol=3e-6
    )


@pytest.mark.parametrize(
    ("value", "named"), [(np.nan, "NaN"), (5.0, "outside 0 to ln"), (-0.1, "outside 0 to ln")]
)
def test_impossible_entropies_stop_the_run_and_name_layer_and_head(value, named):
    arrays = {name: np.full((1, 2, 3), 0.5, np.float32) for name in ROWS}
    arrays["entropy"][0, :, 0] = 0
    arrays["entropy_sinkfree"][0, :, :2] = np.nan
    arrays["entropy"][0, 1, 2] = value
    with pytest.raises(RunFailed, match=f"layer 7 head 1.*row 2 .*{named}"):
        check_rows(arrays, [3], np.arange(1, 4), [7])
    check_rows(arrays, [2], np.arange(1, 4), [7])  # beyond the prompt's tokens nothing is checked
    sound = {name: np.nan_to_num(values, nan=0.5) for name, values in arrays.items()}
    sound["entropy"] = np.zeros_like(sound["entropy"])
    both = {name: np.concatenate([sound[name]] * 3 + [arrays[name]]) for name in ROWS}
    with pytest.raises(RunFailed, match=f"layer 9 head 1.*row 2 .*{named}"):
        check_rows(both, [3] * 4, np.arange(1, 4), [7, 9])  # two prompts of two layers


@pytest.mark.parametrize(
    ("name", "value", "possible"),
    [
        ("entropy", 0.5, True),
        ("entropy", 5.0, False),
        ("entropy", -0.1, False),
        ("entropy", np.nan, False),
        ("entropy_sinkfree", 5.0, False),
        ("entropy_sinkfree", np.nan, True),
        ("sink_mass", np.inf, False),
    ],
)
def test_rows_that_a_kernel_has_joined_are_checked_where_they_are(name, value, possible):
    """Two layers of two prompts, of three tokens and of two."""
    places = Places(np.array([[0, 3], [0, 2]]))
    keep = recorder.LayerRecorder([(None, None)] * 2, [3, 2], places, None)
    rows = {row: torch.full((4, 2, 3), 0.5) for row in ROWS}
    rows["entropy"][:, :, 0] = 0
    rows["entropy_sinkfree"][:, :, :2] = np.nan
    rows[name][2, 1, 2] = value
    found = keep.checked(rows, keep.stack(2), Scoring(1.0))
    assert bool(found.pop("possible")) == possible
    for row, values in found.items():
        assert torch.isnan(values[1::2, :, 2]).all()
        assert torch.equal(values[::2].nan_to_num(-1), rows[row][::2].nan_to_num(-1))
        assert torch.equal(
            values[1::2, :, :2].nan_to_num(-1), rows[row][1::2, :, :2].nan_to_num(-1)
        )


def test_the_instrument_check_catches_a_wrong_kernel(models, monkeypatch):
    loaded = models("llama")
    assert instrument.check_streaming(loaded)["path_gap"] < 1e-5
    right = streaming.block_means
    monkeypatch.setattr(
        streaming,
        "block_means",
        lambda q, k, v, how: right(q, k, v, replace(how, scale=how.scale * 1.01)),
    )
    with pytest.raises(RunFailed, match=r"instrument check: layer 0: .*--capture patterns"):
        instrument.check_streaming(loaded)


def test_every_check_of_streaming_begins_anew(models):
    """Two checks at once, or one that stopped in the middle, must not share their largest gap."""
    windows = [(None, None)]
    first, second = (instrument.CheckedRecorder(windows, [3], [[0, 3]], None) for _ in range(2))
    first.largest = 1.0
    assert second.largest == 0.0
    assert instrument.check_streaming(models("llama"))["kernel_gap"] < 1e-5
    assert first.largest == 1.0


def test_streaming_shares_the_weights_and_leaves_the_bridge_alone(models):
    loaded = models("llama")
    tokenized = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    before = capture_clean(loaded, tokenized)[0].logits
    capture_streaming(loaded, tokenized)
    assert np.array_equal(capture_clean(loaded, tokenized)[0].logits, before)
    addresses = {p.data_ptr() for p in loaded.bridge.original_model.parameters()}
    assert {p.data_ptr() for p in loaded.model.parameters()} <= addresses


FACTS = {"n_layers": 3, "n_heads": 4}


@pytest.mark.parametrize(
    ("capture", "raw", "tokens", "expected"),
    [
        ("auto", "none", 512, "patterns"),
        ("auto", "none", 513, "streaming"),
        ("auto", "patterns", 513, "patterns"),
        ("auto", "full", 513, "patterns"),
        ("patterns", "none", 900, "patterns"),
        ("streaming", "none", 9, "streaming"),
    ],
)
def test_auto_streams_long_prompts_unless_patterns_are_asked_for(capture, raw, tokens, expected):
    prompt = prompt_tokens.TokenizedPrompt(
        "a", "neutral", -1, "", "", [0] * tokens, [], (0, tokens)
    )
    method, why = attention.choose_capture(capture, raw, [prompt], FACTS, 64)
    assert method == expected
    assert (why is not None) == (capture == "auto" and method == "streaming")


def test_auto_streams_on_a_card_and_checks_every_tile_of_its_kernel(models):
    tiny = models("llama")
    tokenized = tokenize_prompts(select_prompts(per_category=1), tiny.tokenizer)
    for device, method, n_batches in (("cpu", "patterns", 1), ("cuda:0", "streaming", 3)):
        card = replace(tiny, facts=tiny.facts | {"device": device})
        assert attention.choose_capture("auto", "none", tokenized, card.facts, 64)[0] == method
        batches = streaming_batches(card)
        assert len(batches) == n_batches
    assert sorted(max(map(len, batch)) // 64 for batch in batches) == [0, 1, 2]


def test_auto_streams_what_would_not_fit(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    prompt = prompt_tokens.TokenizedPrompt("a", "neutral", -1, "", "", [0] * 400, [], (0, 400))
    method, why = attention.choose_capture("auto", "none", [prompt], FACTS, 64)
    assert method == "streaming"
    assert "GiB" in why


def test_batches_hold_at_most_so_many_tokens_padding_counted():
    lengths = [5, 9, 5, 7, 9, 40]
    batches = make_batches(lengths, 3, 18)
    assert [[lengths[i] for i in batch] for batch in batches] == [[5, 5], [7, 9], [9], [40]]


def test_out_of_memory_halves_every_later_batch(models, monkeypatch):
    loaded = models("llama")
    tokenized = tokenize_prompts(select_prompts(per_category=4), loaded.tokenizer)
    real, sizes = recorder.stream_layers, []

    def scarce(loaded, batch, *rest):
        sizes.append(batch.n_prompts)
        if batch.n_prompts > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, batch, *rest)

    monkeypatch.setattr(attention, "stream_layers", scarce)
    captured = capture_streaming(loaded, tokenized, batch_size=8)
    assert sizes[0] == 8
    assert max(sizes[1:]) <= 4 and captured.batch_size == 4
    assert np.isfinite(captured.arrays["entropy"][..., 0]).all()


def test_the_script_writes_the_same_run_either_way(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(instrument, "load_model", lambda *_: models("llama"))
    flags = ["--model_id", "tiny", "--prompts_per_category", "2"]
    runs = {}
    for way, raw in (("patterns", ["--raw", "patterns"]), ("streaming", [])):
        place = ["--output_dir", str(tmp_path / way)]
        assert activation_analysis.main([*flags, "--capture", way, *raw, *place]) == 0
        runs[way] = output_manager.load_run(tmp_path / way / "latest_run")
    for name in ROWS + tuple(name for name in MASSES if name != TURN_MASS):  # of conversations
        np.testing.assert_allclose(
            getattr(runs["streaming"], name), getattr(runs["patterns"], name), atol=1e-4
        )
    recorded = json.loads((tmp_path / "streaming/latest_run/experiment_config.json").read_text())[
        "capture"
    ]
    assert recorded["method"] == "streaming" and recorded["batch_size"] == 64
    assert 0 < recorded["kernel_gap"] < recorded["kernel_tolerance"] == 1e-4
    assert 0 < recorded["path_gap"] < recorded["path_tolerance"] == 1e-4
    assert not list((tmp_path / "streaming/latest_run").resolve().glob("raw_*"))
    assert list((tmp_path / "patterns/latest_run").resolve().glob("raw_*"))
    assert activation_analysis.main([*flags, "--capture", "streaming", "--raw", "full"]) == 2
    assert "--raw full with --capture streaming" in capsys.readouterr().err
