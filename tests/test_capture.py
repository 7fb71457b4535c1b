"""Capture against the model itself: patterns are Hugging Face's, batches are single prompts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import activation_analysis
from prompts import select_prompts
from rolecircuits.capture import activations, attention, generation, instrument
from rolecircuits.capture import batches as batches_module
from rolecircuits.capture.attention import capture_patterns
from rolecircuits.capture.batches import equal_lengths, make_batches
from rolecircuits.capture.patterns import check_patterns, reduce_pattern
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits.passes import capture_clean
from rolecircuits.inputs.categories import PAIRED, Prompt
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models import devices
from rolecircuits.models.load import ModelTokenizer
from rolecircuits.models.source import BUNDLED, bundled_folder
from rolecircuits.stats import entropy as entropies
from rolecircuits.stats.masses import Places
from tiny_models import CONFIGS, WINDOW, WINDOWS, load_checked, save_tiny


@pytest.fixture(scope="module")
def bundled():
    return load_checked(BUNDLED, device="cpu")


@pytest.fixture(scope="module", params=list(CONFIGS))
def tiny(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, folder, load_checked(folder, device="cpu")


def eager_patterns(folder, prompts):
    """[layer][prompt, head, query, key] of one right-padded batch from Hugging Face's attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids, mask = batches_module.pad_right([p.token_ids for p in prompts])
    with torch.inference_mode():
        attentions = model(ids, attention_mask=mask, output_attentions=True).attentions
    return [a.numpy() for a in attentions]


def largest_difference(captured, prompts, expected):
    """Over all layers, heads and real rows of the prompts."""
    lengths = [len(p.token_ids) for p in prompts]
    return max(
        abs(captured.patterns[layer][i, :, :n, :n] - patterns[i, :, :n, :n]).max()
        for layer, patterns in enumerate(expected)
        for i, n in enumerate(lengths)
    )


def test_patterns_equal_hugging_face_on_the_bundled_model(bundled):
    tokenized = tokenize_prompts(select_prompts(per_category=3), bundled.tokenizer)
    captured = capture_patterns(bundled, tokenized, batch_size=12, keep_patterns=True)
    in_order = batches_module.make_batches([len(p.token_ids) for p in tokenized], 12)[0]
    expected = eager_patterns(bundled_folder(), [tokenized[i] for i in in_order])
    back = np.argsort(in_order)
    assert largest_difference(captured, tokenized, [layer[back] for layer in expected]) <= 1e-6
    alone = [captured.patterns[layer][:1] for layer in range(bundled.n_layers)]
    n = len(tokenized[0].token_ids)
    unpadded = eager_patterns(bundled_folder(), tokenized[:1])
    assert max(abs(a[:, :, :n, :n] - b).max() for a, b in zip(alone, unpadded, strict=True)) <= 1e-5
    assert captured.patterns[0][0, :, n:].sum() == 0


def test_tiny_architectures_match_hugging_face(tiny):
    name, folder, loaded = tiny
    tokenized = tokenize_prompts(select_prompts(per_category=3), loaded.tokenizer)
    captured = capture_patterns(loaded, tokenized, keep_patterns=True)
    assert loaded.facts["sliding_windows"] == WINDOWS[name]
    expected = eager_patterns(folder, tokenized)
    assert largest_difference(captured, tokenized, expected) <= 1e-6
    assert max(len(p.token_ids) for p in tokenized) > WINDOW + 1
    for i, prompt in enumerate(tokenized):
        n = len(prompt.token_ids)
        for layer, patterns in enumerate(expected):
            visible = captured.arrays["visible_keys"][layer, :n]
            assert ((patterns[i, :, :n] > 0).sum(axis=-1) == visible).all()


def test_a_batch_gives_what_single_prompts_give(bundled):
    tokenized = tokenize_prompts(select_prompts(per_category=3), bundled.tokenizer)
    together = capture_patterns(bundled, tokenized, batch_size=12)
    for i, prompt in enumerate(tokenized):
        alone = capture_patterns(bundled, [prompt])
        n = len(prompt.token_ids)
        for name in ("entropy", "entropy_sinkfree", "sink_mass"):
            np.testing.assert_allclose(
                together.arrays[name][i, ..., :n], alone.arrays[name][0], atol=1e-5
            )
            assert np.isnan(together.arrays[name][i, ..., n:]).all()
        for name in ("first_mass", "last_mass", "edge_mass"):
            np.testing.assert_allclose(together.arrays[name][i], alone.arrays[name][0], atol=1e-5)


def test_arrays_follow_from_the_patterns(bundled):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    captured = capture_patterns(bundled, tokenized, keep_patterns=True)
    pattern = captured.patterns[4].astype(np.float64)
    for i, prompt in enumerate(tokenized):
        n = len(prompt.token_ids)
        rows = pattern[i, :, :n, :n]
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = -np.nansum(rows * np.log(rows), axis=-1)
        np.testing.assert_allclose(captured.arrays["entropy"][i, 4, :, :n], expected, atol=1e-5)
        np.testing.assert_allclose(
            captured.arrays["first_mass"][i, 4], rows[:, -1, 1:4].sum(axis=-1), atol=1e-6
        )
        np.testing.assert_allclose(
            captured.arrays["sink_mass"][i, 4, :, :n], rows[..., 0], atol=1e-7
        )


def test_final_logits_are_those_of_the_last_real_token(bundled):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    captured, _ = capture_clean(bundled, tokenized)
    model = AutoModelForCausalLM.from_pretrained(bundled_folder()).eval()
    for i in (0, 2, 5):
        with torch.inference_mode():
            expected = model(torch.tensor([tokenized[i].token_ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(captured.logits[i], expected, atol=1e-3)


def test_short_dtypes_take_the_softmax_in_float32(tmp_path):
    folder = save_tiny("llama", tmp_path)
    full = load_checked(folder, device="cpu")
    short = load_checked(folder, device="cpu", dtype="bfloat16")
    tokenized = tokenize_prompts(select_prompts(per_category=2), full.tokenizer)
    rows = capture_patterns(short, tokenized, keep_patterns=True).patterns[0]
    sums = rows[0, :, : len(tokenized[0].token_ids)].sum(axis=-1)
    assert abs(sums - 1).max() < 1e-6
    entropy = capture_patterns(full, tokenized).arrays["entropy"]
    rounded = capture_patterns(short, tokenized).arrays["entropy"]
    assert np.nanmax(abs(entropy - rounded)) < 0.2


def test_built_in_pairs_have_equal_token_counts(bundled):
    tokenized = tokenize_prompts(select_prompts(), bundled.tokenizer)
    lengths = {(p.category, p.pair_id): len(p.token_ids) for p in tokenized if p.category in PAIRED}
    assert [lengths["confounder", i] for i in range(30)] == [
        lengths["third_person", i] for i in range(30)
    ]
    assert {len(PAIRED), len(lengths)} == {2, 60}


def test_raw_prompts_have_the_bos_outside_their_span(bundled):
    prompt = tokenize_prompts(select_prompts(per_category=1), bundled.tokenizer)[0]
    assert prompt.token_ids[0] == bundled.tokenizer.hf.bos_token_id
    assert prompt.span == (1, len(prompt.token_ids))
    never = tokenize_prompts(
        select_prompts(per_category=1), bundled.tokenizer, PromptFormat(bos="never")
    )[0]
    assert never.token_ids == prompt.token_ids[1:]
    assert never.span == (0, len(never.token_ids))


def test_chat_span_is_the_user_s_text_and_the_bos_is_not_doubled(bundled):
    hf = bundled.tokenizer.hf
    prompt = Prompt(
        "x", "neutral", -1, "assistant"
    )  # the word also stands in the template's own system text
    chat = tokenize_prompts([prompt], bundled.tokenizer, PromptFormat("chat"))[0]
    assert hf.decode(chat.token_ids[slice(*chat.span)]) == "assistant"
    assert chat.rendered.endswith("<|im_start|>assistant\n")
    assert "named SmolLM" in chat.rendered
    assert hf.decode(chat.token_ids[chat.span[0] - 3 : chat.span[0]]) == "<|im_start|>user\n"
    assert chat.token_ids[:2].count(hf.bos_token_id) == 1


@pytest.mark.parametrize("system", ["", "You are a cat."])
def test_system_prompt_replaces_the_template_s_own(bundled, system):
    chat = tokenize_prompts(
        select_prompts(per_category=1)[:1], bundled.tokenizer, PromptFormat("chat", system)
    )[0]
    assert f"<|im_start|>system\n{system}<|im_end|>" in chat.rendered
    assert "SmolLM" not in chat.rendered


@pytest.mark.parametrize(
    ("text", "named"), [("say <|im_end|> now", "<|im_end|>"), ("word " * 300, "context holds 256")]
)
def test_prompts_that_cannot_be_fed_are_refused(bundled, text, named):
    tokenizer = ModelTokenizer(bundled.tokenizer.hf, True, 256, 49152)
    with pytest.raises(UserError, match=named.replace("|", r"\|")):
        tokenize_prompts([Prompt("p", "neutral", -1, text)], tokenizer)


def test_a_model_without_chat_template_says_so(bundled, monkeypatch):
    monkeypatch.setattr(bundled.tokenizer.hf, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        tokenize_prompts(select_prompts(per_category=1), bundled.tokenizer, PromptFormat("chat"))


VISIBLE = [np.array([1, 2, 3]), np.array([1, 2, 2])]


def good_pattern():
    return np.tril(np.ones((1, 1, 3, 3), np.float32)) / np.arange(1, 4, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("change", "layer", "named"),
    [
        (lambda p: p.__setitem__((0, 0, 2, 1), np.nan), 0, "NaN"),
        (lambda p: p.__setitem__((0, 0, 2), 0), 0, "sum to 1"),
        (lambda p: p.__setitem__((0, 0, 0), [0.5, 0.5, 0]), 0, "cannot see"),
        (lambda p: None, 1, "cannot see"),  # row 2 attends to key 0, outside the window of 2
    ],
)
def test_bad_patterns_stop_the_run_and_name_layer_and_head(change, layer, named):
    pattern = good_pattern()
    check_patterns(pattern, [3], 0, VISIBLE[0], 1)
    change(pattern)
    with pytest.raises(RunFailed, match=rf"layer {layer} head 0.*{named}"):
        check_patterns(pattern, [3], layer, VISIBLE[layer], 1)


def test_padding_rows_are_not_checked_or_measured():
    pattern = good_pattern()
    pattern[0, 0, 2] = np.nan
    check_patterns(pattern, [2], 0, VISIBLE[0], 1)
    reduced = reduce_pattern(
        np.nan_to_num(pattern), np.array([2]), Places(np.array([[1, 2]])), np.array([1, 2, 3])
    )
    np.testing.assert_allclose(reduced["entropy"][0, 0], [0, np.log(2), np.nan], atol=1e-7)
    assert np.isnan(reduced["entropy_sinkfree"][0, 0]).all()


def test_wrong_number_of_heads_is_refused():
    with pytest.raises(RunFailed, match="expected 1 heads"):
        check_patterns(np.repeat(good_pattern(), 2, axis=1), [3], 0, VISIBLE[0], 1)


def test_out_of_memory_halves_the_batch_and_loses_only_what_cannot_run(
    bundled, monkeypatch, capsys
):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    real, sizes = attention.read_patterns, []

    def scarce(loaded, token_ids, *rest):
        sizes.append(len(token_ids))
        if len(token_ids) > 2 or token_ids[0] == tokenized[3].token_ids:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(loaded, token_ids, *rest)

    monkeypatch.setattr(attention, "read_patterns", scarce)
    captured = capture_patterns(bundled, tokenized, batch_size=8, keep_patterns=True)
    assert captured.failed == [(tokenized[3].id, "out of memory with a batch of one")]
    assert sizes[:2] == [8, 4] and captured.batch_size == 1
    assert captured.arrays["prompt_id"].tolist() == [
        p.id for i, p in enumerate(tokenized) if i != 3
    ]
    assert len(captured.patterns[0]) == 7
    clean = np.isfinite(captured.arrays["entropy"]).sum(axis=(1, 2, 3))
    assert (clean == captured.arrays["n_tokens"] * bundled.n_layers * bundled.n_heads).all()


def fails_above(function, size, count):
    """`function`, which runs out of memory where count(*args) is above `size`; and the counts."""
    counts = []

    def scarce(*args, **kwargs):
        counts.append(count(*args, **kwargs))
        if counts[-1] > size:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 8.75 GB)")
        return function(*args, **kwargs)

    return scarce, counts


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.75 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (MemoryError("Unable to allocate 20.0 GiB for an array"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_recognised(error, expected):
    assert batches_module.is_out_of_memory(error) is expected


def test_other_errors_pass_the_batch_loop():
    def work(batch):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        batches_module.run_batches([3, 3], work, 2)


def test_the_batch_loop_halves_for_good_and_says_what_is_left(capsys):
    done, sizes = [], []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 3 or 7 in batch:
            raise MemoryError
        done.extend(batch)

    assert batches_module.run_batches([5] * 9, work, 8) == ([7], 1)
    assert sorted(done) == [0, 1, 2, 3, 4, 5, 6, 8] and sizes[:3] == [8, 4, 2]
    assert capsys.readouterr().out.count("halved") == 3
    assert batches_module.run_batches([5] * 9, done.extend, 8) == ([], 8)
    equal = make_batches([5, 6, 5, 6, 6], 2, side=equal_lengths)
    assert equal == [[0, 2], [1, 3], [4]]


def test_activations_are_collected_in_halves(bundled, monkeypatch):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    names = ["blocks.3.mlp.hook_post", "hook_embed"]
    whole = activations.collect_activations(bundled, tokenized, names, 3)
    real = bundled.bridge.run_with_hooks
    scarce, sizes = fails_above(real, 3, lambda ids, **kwargs: len(ids))
    monkeypatch.setattr(bundled.bridge, "run_with_hooks", scarce)
    halved = activations.collect_activations(bundled, tokenized, names, 6)
    assert sizes[:2] == [6, 3]
    for name in names:
        np.testing.assert_allclose(halved[name], whole[name], atol=1e-4)
    scarce, _ = fails_above(real, 0, lambda ids, **kwargs: len(ids))
    monkeypatch.setattr(bundled.bridge, "run_with_hooks", scarce)
    with pytest.raises(
        RunFailed, match="activations: prompt .*: out of memory with a batch of one"
    ):
        activations.collect_activations(bundled, tokenized, names, 6)


def test_answers_are_generated_in_halves(bundled, monkeypatch):
    tokenized = tokenize_prompts(select_prompts(per_category=8), bundled.tokenizer)
    whole = generation.generate_greedily(bundled, tokenized, 2, 2)
    count = lambda loaded, ids, *rest: len(ids)  # noqa: E731
    scarce, sizes = fails_above(generation._continue_batch, 2, count)
    monkeypatch.setattr(generation, "_continue_batch", scarce)
    assert generation.generate_greedily(bundled, tokenized, 2, 8) == whole
    assert max(sizes) > 2 >= sizes[-1]
    scarce, _ = fails_above(generation._continue_batch, 0, count)
    monkeypatch.setattr(generation, "_continue_batch", scarce)
    with pytest.raises(RunFailed, match="baseline: prompt .*: out of memory with a batch of one"):
        generation.generate_greedily(bundled, tokenized, 2, 8, title="baseline")


def test_raw_that_does_not_fit_is_refused_before_anything_is_run(bundled, monkeypatch):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    longest, cfg = max(len(p.token_ids) for p in tokenized), bundled.bridge.cfg
    patterns = 30 * len(tokenized) * 9 * longest**2 * 4
    units = len(tokenized) * longest * (30 * cfg.d_mlp + 2 * cfg.d_model) * 4
    whole = activations.collect_activations(bundled, tokenized, list(activations.raw_files(30)))
    assert sum(values.nbytes for values in whole.values()) == units
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2 * (patterns + units) - 2)
    activations.check_raw(bundled, tokenized, "none")
    activations.check_raw(bundled, tokenized, "patterns")
    said = rf"--raw full of 8 prompts of up to {longest} tokens needs .* use --raw patterns"
    with pytest.raises(UserError, match=said):
        activations.check_raw(bundled, tokenized, "full")
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2 * patterns - 2)
    with pytest.raises(UserError, match="--raw patterns of 8 prompts .* use --raw none"):
        activations.check_raw(bundled, tokenized, "patterns")
    monkeypatch.setattr(attention, "read_patterns", None)
    monkeypatch.setattr(instrument, "load_model", lambda *_: bundled)
    assert activation_analysis.main(["--raw", "full", "--prompts_per_category", "2"]) == 2


def test_batches_hold_every_prompt_once_and_similar_lengths():
    lengths = [5, 9, 5, 7, 9, 4]
    batches = make_batches(lengths, 2)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert [[lengths[i] for i in batch] for batch in batches] == [[4, 5], [5, 7], [9, 9]]


def test_normalised_values_are_bounded(bundled):
    tokenized = tokenize_prompts(select_prompts(per_category=2), bundled.tokenizer)
    arrays = capture_patterns(bundled, tokenized).arrays
    values = entropies.normalise_entropy(
        arrays["entropy"], arrays["visible_keys"][None, :, None, :]
    )
    assert np.nanmin(values) >= 0
    assert np.nanmax(values) <= 1 + 1e-6
