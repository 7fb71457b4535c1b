"""The monitor leaves every token as it is, and its rows are those of a full pass over the text."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GptOssConfig,
    OpenAIGPTConfig,
    StaticCache,
)
from transformers.modeling_utils import AttentionInterface

from prompts import select_prompts
from rolecircuits.capture import masks, patterns
from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.conversations import read_turns, tokenize_turns
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.monitor import ACTIVE, RoleMonitor
from rolecircuits.stats.masses import SEGMENTS, Places, segment_rows, uniform_masses
from tiny_models import SHAPE, WINDOW, load_checked, save_config, save_tiny

TALK = [("system", "Stay kind."), ("user", "Who are you?"), ("assistant", "I am."), ("user", "So?")]
FAMILIES = ("llama", "mistral", "qwen2", "gemma2", "gpt_oss")
EAGER_ONLY = ("gemma2", "gpt_oss")  # a soft cap, learned sinks


def save_any(name, folder):
    if name != "gpt_oss":
        return save_tiny(name, folder)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    return save_config(GptOssConfig(**SHAPE, **experts, sliding_window=WINDOW), folder)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    name = request.param
    return name, save_any(name, tmp_path_factory.mktemp(f"monitor_{name}"))


def load_eager(folder):
    """A checked model that is left with its own attention."""
    loaded = load_checked(folder)
    set_attention(loaded.model, EAGER)
    return loaded


@pytest.fixture(scope="module")
def folder_of_llama(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("monitor"))


@pytest.fixture
def llama(folder_of_llama):
    return load_eager(folder_of_llama)


def open_hf(folder, attention):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def conversation(tokenizer, turns=TALK):
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def full_pass(loaded, ids):
    """{layer: (pattern [head, query, key], a learned sink first where there is one)} of a text."""
    found = {}
    patterns.read_patterns(loaded, [ids], lambda layer, pattern: found.update({layer: pattern[0]}))
    return found


def expected_arrays(loaded, ids, segments):
    """The arrays of `patterns.reduce_pattern` of a full pass, [layer, ...] each, and the masses."""
    visible = masks.visible_keys(loaded, len(ids))
    arrays, masses = [], []
    for layer, pattern in full_pass(loaded, ids).items():
        places = Places(np.array([[0, len(ids)]]))
        n = np.array([len(ids)])
        arrays.append(patterns.reduce_pattern(pattern[None], n, places, visible[layer]))
        masses.append(segment_rows(pattern[None], np.array([segments]))[0])
    names = ("entropy", "entropy_sinkfree", "sink_mass")
    return {name: np.stack([a[name][0] for a in arrays]) for name in names} | {
        "segment_mass": np.stack(masses),
        "visible_keys": visible,
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drawn", [False, True])
def test_tokens_are_the_same_and_rows_are_those_of_a_full_pass(saved, attention, drawn):
    name, folder = saved
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("not in SDPA")
    model, tokenizer = open_hf(folder, attention)
    fed = conversation(tokenizer)
    how = {"max_new_tokens": 12, "do_sample": drawn, "eos_token_id": None}

    def generate():
        torch.manual_seed(5)
        return model.generate(**fed, **how)

    before = generate()
    with RoleMonitor(model, tokenizer) as monitor:
        during = generate()
    assert torch.equal(before, during) and torch.equal(before, generate())
    (text,) = monitor.texts
    assert text.token_ids == before[0, :-1].tolist()
    got = text.arrays()
    expected = expected_arrays(load_checked(folder), text.token_ids, text.segments)
    for array, values in expected.items():
        defined = ~np.isnan(values)
        assert np.array_equal(defined, ~np.isnan(got[array])), array
        assert np.abs(got[array] - values)[defined].max() < 1e-5, array
    assert np.abs(got["segment_mass"].sum(axis=-1) - 1).max() < 1e-5
    windowed = (got["visible_keys"][:, -1] < len(text.token_ids)).any()
    assert windowed == (name != "llama")


def test_segments_are_those_of_the_conversation(llama):
    tokenizer = llama.tokenizer.hf
    fed = conversation(tokenizer)
    with RoleMonitor(llama.model, tokenizer) as monitor:
        llama.model.generate(**fed, max_new_tokens=4, eos_token_id=None, do_sample=False)
    (text,) = monitor.texts

    def text_of(name):
        ids = np.array(text.token_ids)[text.segments == SEGMENTS.index(name)]
        return tokenizer.decode(ids.tolist())

    n = fed["input_ids"].shape[1]
    generated = tokenizer.decode(text.token_ids[n:])
    assert text_of("system_text") == "Stay kind."
    assert text_of("user_text") == "Who are you?So?"
    assert text_of("assistant_text") == "I am." + generated
    assert text_of("assistant_header") == "<|im_start|>assistant\n"


def test_a_rendered_conversation_is_read_back(llama):
    template = Template(llama.tokenizer, PromptFormat("chat"))
    fed = tokenize_turns(TALK, llama.tokenizer, template, "text", header=True)
    assert read_turns(fed.rendered, template) == TALK
    assert read_turns("Once upon a time", template) is None
    assert read_turns(fed.rendered.removesuffix("\n"), template) is None


def test_uniform_shares_are_those_of_the_final_query(saved):
    _, folder = saved
    loaded = load_eager(folder)
    (prompt,) = tokenize_prompts(
        select_prompts(per_category=1)[:1], loaded.tokenizer, PromptFormat("chat")
    )
    monitor = RoleMonitor(loaded.model, loaded.tokenizer, [prompt])
    with monitor, torch.no_grad():
        loaded.model(input_ids=torch.tensor([prompt.token_ids]), use_cache=False)
    (text,) = monitor.texts
    found = text.arrays()["segment_uniform"][:, -1]
    n, segments = len(prompt.token_ids), np.array([prompt.segments])
    places = Places(np.array([prompt.span]), np.array([prompt.slot]), segments)
    expected = uniform_masses(places, [n], masks.visible_keys(loaded, n))["segment_uniform"][0]
    assert np.abs(found - expected).max() < 1e-12 and np.abs(found.sum(axis=-1) - 1).max() < 1e-12


def test_padded_batches_give_what_single_texts_give(saved):
    _, folder = saved
    model, tokenizer = open_hf(folder, "eager")
    tokenizer.padding_side = "left"
    texts = ["Who are you?", "What is it that you see there, tell me all of it"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert (batch["attention_mask"] == 0).any()
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with RoleMonitor(model, tokenizer) as together:
        model.generate(**batch, **how)
    for text, one in zip(texts, together.texts, strict=True):
        with RoleMonitor(model, tokenizer) as alone:
            model.generate(**tokenizer(text, return_tensors="pt"), **how)
        (expected,) = alone.texts
        assert one.token_ids == expected.token_ids
        for name, values in expected.arrays().items():
            got = one.arrays()[name]
            assert np.allclose(got, values, atol=1e-5, equal_nan=True), name


def test_a_slot_is_followed(llama):
    crossed = select_prompts(per_category=1)
    tokenized = tokenize_prompts(crossed[:1], llama.tokenizer)
    prompt = tokenized[0]
    start, stop = prompt.span
    monitor = RoleMonitor(llama.model, llama.tokenizer)
    monitor.expect(prompt.token_ids, prompt.segments, (start + 1, start + 2))
    with monitor, torch.no_grad():
        llama.model(input_ids=torch.tensor([prompt.token_ids]), use_cache=False)
    got = monitor.texts[0].arrays()["slot_mass"]
    for layer, pattern in full_pass(llama, prompt.token_ids).items():
        assert np.abs(got[layer] - pattern[..., start + 1]).max() < 1e-6


def test_attention_is_itself_again_after_an_error(llama):
    own, hooks = AttentionInterface.get_interface, len(llama.model.base_model._forward_hooks)
    with pytest.raises(ZeroDivisionError), RoleMonitor(llama.model, llama.tokenizer):
        assert AttentionInterface.get_interface is not own
        raise ZeroDivisionError
    assert AttentionInterface.get_interface is own and ACTIVE == []
    assert len(llama.model.base_model._forward_hooks) == hooks
    fed = {"input_ids": torch.tensor([[1, 5, 7]]), "max_new_tokens": 2, "do_sample": False}
    llama.model.generate(**fed)


def test_a_pass_that_fails_leaves_no_rows(llama, monkeypatch):
    monitor = RoleMonitor(llama.model, llama.tokenizer)
    layer = llama.model.model.layers[1]
    with monitor:
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", partial(divmod, 1, 0))
            with pytest.raises(TypeError):
                llama.model(input_ids=torch.tensor([[1, 5, 7]]))
        with torch.no_grad():
            llama.model(input_ids=torch.tensor([[1, 5, 7, 9]]))
    assert [text.token_ids for text in monitor.texts] == [[1, 5, 7, 9]]


def test_a_cache_that_is_cropped_and_fed_again(llama):
    ids, cache = torch.tensor([[1, 5, 7, 9, 11]]), DynamicCache()
    with RoleMonitor(llama.model, llama.tokenizer) as monitor, torch.no_grad():
        llama.model(input_ids=ids, past_key_values=cache)
        cache.crop(-2)
        llama.model(input_ids=torch.tensor([[21, 23, 25]]), past_key_values=cache)
    (text,) = monitor.texts
    assert text.token_ids == [1, 5, 7, 21, 23, 25]
    expected = expected_arrays(llama, text.token_ids, text.segments)
    got = text.arrays()["entropy"]
    assert np.abs(got - expected["entropy"]).max() < 1e-5


def test_what_cannot_be_exact_is_refused_in_one_line(llama, tmp_path):
    own = save_config(OpenAIGPTConfig(vocab_size=49152, n_embd=32, n_layer=2, n_head=2), tmp_path)
    model, tokenizer = open_hf(own, "eager")
    with pytest.raises(UserError, match="runs its own eager attention"):
        RoleMonitor(model, tokenizer)
    fed = {"input_ids": torch.tensor([[1, 5, 7]]), "max_new_tokens": 3, "do_sample": False}
    with RoleMonitor(llama.model, llama.tokenizer):
        with pytest.raises(UserError, match="beams"):
            llama.model.generate(**fed, num_beams=2)
        cache = StaticCache(config=llama.model.config, max_cache_len=16)
        with pytest.raises(UserError, match="static cache"):
            llama.model(input_ids=fed["input_ids"], past_key_values=cache)
    cache = DynamicCache()
    llama.model(input_ids=fed["input_ids"], past_key_values=cache)
    with (
        RoleMonitor(llama.model, llama.tokenizer),
        pytest.raises(UserError, match="before the monitor began"),
    ):
        llama.model(input_ids=fed["input_ids"], past_key_values=cache)


def test_a_trainer_records_prompts_at_every_evaluation(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    loaded = load_eager(save_tiny("llama", tmp_path / "model"))
    prompts = tokenize_prompts(select_prompts(per_category=1), loaded.tokenizer)
    monitor = RoleMonitor(loaded.model, loaded.tokenizer, prompts)
    rows = [{"input_ids": [1, 5, 7, 9], "labels": [1, 5, 7, 9]}] * 4
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        loaded.model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[monitor]
    )
    trainer.train()
    found = monitor.evaluations
    assert [row["step"] for row in found] == [1] * len(prompts) + [2] * len(prompts)
    assert [row["id"] for row in found] == [prompt.id for prompt in prompts] * 2
    first, second = found[0], found[len(prompts)]
    assert 0 < first["normalised"] < 1 and first["normalised"] != second["normalised"]
    assert ACTIVE == [] and monitor.texts == []


def test_an_adapter_that_is_being_trained_is_recorded(llama):
    peft = pytest.importorskip("peft")
    fed = {"input_ids": torch.tensor([[1, 5, 7]]), "max_new_tokens": 3, "do_sample": False}
    fed["eos_token_id"] = None
    adapted = peft.get_peft_model(llama.model, peft.LoraConfig(target_modules=["q_proj"]))
    with RoleMonitor(adapted, llama.tokenizer) as monitor:
        out = adapted.generate(**fed)
    (text,) = monitor.texts
    assert text.token_ids == out[0, :-1].tolist() and len(text.rows) == llama.n_layers


def test_monitors_may_overlap(llama):
    ids = torch.tensor([[1, 5, 7, 9]])
    first, second = (RoleMonitor(llama.model, llama.tokenizer) for _ in range(2))
    own = AttentionInterface.get_interface
    with torch.no_grad():
        first.__enter__()
        second.__enter__()
        llama.model(input_ids=ids)
        first.__exit__()
        llama.model(input_ids=ids)
        second.__exit__()
    assert len(first.texts) == 1 and len(second.texts) == 2
    assert AttentionInterface.get_interface is own
