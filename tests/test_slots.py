"""Where things stand among the tokens fed (slots, segments, both turns), and their masses."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

import activation_analysis
import output_manager
from rolecircuits.capture import attention, frames, tokens
from rolecircuits.capture.tokens import tokenize_all, tokenize_prompts
from rolecircuits.inputs.categories import Prompt, cells_of
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models.load import load_tokenizer
from rolecircuits.models.source import BUNDLED
from rolecircuits.runs import arrays as run_arrays
from rolecircuits.runs import files, npz
from rolecircuits.stats import masses
from rolecircuits.stats.masses import SEGMENTS, Places, final_query_masses, uniform_masses
from synthetic import make_run, save_run
from tiny_models import WINDOW, load_checked, save_tiny

CHAT = PromptFormat("chat")
CROSSED = cut_prompts(built_in_prompts("crossed"), 36)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED)


def text_of(tokenizer, prompt, start, stop):
    return tokenizer.hf.decode(prompt.token_ids[start:stop])


@pytest.mark.parametrize("form", [PromptFormat(), PromptFormat(bos="always"), CHAT])
def test_every_frame_is_matched_and_the_slot_is_the_person(tokenizer, form):
    tokenized = tokenize_all(built_in_prompts("crossed"), tokenizer, form)
    kept, left_out = frames.keep_matched(tokenized)
    assert len(kept) == 432 and left_out == {}
    prompt = next(p for p in kept if p.id == "confounder_copula_size_1")
    assert text_of(tokenizer, prompt, *prompt.slot) == " am I"
    assert text_of(tokenizer, prompt, *prompt.span) == "How tall am I?"
    for cell in cells_of(kept).values():
        outside = {tuple(p.token_ids[: p.slot[0]] + p.token_ids[p.slot[1] :]) for p in cell}
        inside = {tuple(p.token_ids[slice(*p.slot)]) for p in cell}
        assert (len(cell), len(outside), len(inside)) == (4, 1, 4)
        assert all(p.span[0] < p.slot[0] < p.slot[1] <= p.span[1] for p in cell)


def test_a_set_without_frames_has_no_slot(tokenizer):
    tokenized = tokenize_prompts(built_in_prompts("original"), tokenizer)
    assert {p.slot for p in tokenized} == {(-1, -1)}
    assert len(tokenized) == 120


def test_a_frame_that_the_tokenizer_does_not_match_is_left_out_and_named(tokenizer):
    longer = [
        replace(p, text=p.text.replace("am I", "is Xylophonist"))
        if p.frame == "copula_size" and p.category == "confounder"
        else p
        for p in CROSSED
    ]
    kept, left_out = frames.keep_matched(tokenize_all(longer, tokenizer))
    assert list(left_out) == ["copula_size"] and "tokens" in left_out["copula_size"]
    assert len(kept) == 4 * 35 and "copula_size" not in {p.frame for p in kept}
    said = frames.describe_left_out(left_out, longer)
    assert said.startswith("1 of 36 frames are not matched") and "copula_size (old: " in said


def test_tokens_outside_the_slot_that_differ_are_noticed(tokenizer):
    tokenized = tokenize_all(CROSSED[:36] + CROSSED[36:72], tokenizer)
    cell = [p for p in tokenized if p.frame == "copula_size"]
    assert frames.find_mismatch(cell) is None
    ids = [cell[0].token_ids[0] + 1, *cell[0].token_ids[1:]]
    assert "outside" in frames.find_mismatch([replace(cell[0], token_ids=ids), cell[1]])
    moved = replace(cell[0], slot=(cell[0].slot[0] - 1, cell[0].slot[1]))
    assert "same tokens" in frames.find_mismatch([moved, cell[1]])


def test_no_matched_frame_at_all_is_refused(tokenizer):
    pair = [
        Prompt("a", "x", -1, "Is it old?", "f"),
        Prompt("b", "y", -1, "Is Xylophonist Brzeziński old?", "f"),
    ]
    with pytest.raises(UserError, match="no frame of this set is matched .*f: 5 or"):
        tokenize_prompts(pair, tokenizer)


def segment_texts(tokenizer, prompt):
    codes = np.array(prompt.segments)
    return {
        name: tokenizer.hf.decode([prompt.token_ids[i] for i in np.flatnonzero(codes == code)])
        for code, name in enumerate(SEGMENTS)
    }


def test_segments_of_a_chat_prompt(tokenizer):
    prompt = tokenize_prompts(CROSSED[:1] + CROSSED[36:37], tokenizer, CHAT)[0]
    texts = segment_texts(tokenizer, prompt)
    assert len(prompt.segments) == len(prompt.token_ids)
    assert texts["sink"] == "<|im_start|>" and texts["user_text"] == "How old are you?"
    assert texts["system_text"].startswith("You are a helpful AI assistant")
    assert texts["system_text"].endswith("Hugging Face")
    assert texts["assistant_header"] == "<|im_start|>assistant\n"
    assert texts["assistant_text"] == "" and "<|im_end|>" in texts["template"]
    own = PromptFormat("chat", "Be brief.")
    prompt = tokenize_prompts(CROSSED[:1] + CROSSED[36:37], tokenizer, own)[0]
    assert segment_texts(tokenizer, prompt)["system_text"] == "Be brief."


def test_segments_of_a_raw_prompt(tokenizer):
    prompt = tokenize_prompts(CROSSED[:1] + CROSSED[36:37], tokenizer, PromptFormat(bos="always"))[
        0
    ]
    assert segment_texts(tokenizer, prompt)["user_text"] == "How old are you?"
    assert prompt.segments[0] == SEGMENTS.index("sink") and prompt.slot == (3, 5)


def test_both_turns_hold_the_same_slot_tokens_in_conversations_of_equal_length(tokenizer):
    chosen = built_in_prompts("deixis")
    kept, left_out = frames.keep_matched(tokenize_all(chosen, tokenizer, CHAT))
    assert len(kept) == len(chosen) == 864 and left_out == {}
    for cell in cells_of(kept).values():
        assert len({len(p.token_ids) for p in cell}) == 1
        assert len({tuple(p.token_ids[-14:]) for p in cell}) == 1
        by_text = {}
        for p in cell:
            by_text.setdefault(p.text, set()).add(tuple(p.token_ids[slice(*p.slot)]))
        assert len(by_text) == 4 and {len(slots) for slots in by_text.values()} == {1}
        first = {p.turn: p.slot[0] for p in cell}
        assert first["assistant"] > first["user"]
    prompt = next(p for p in kept if p.category == "you_assistant")
    texts = segment_texts(tokenizer, prompt)
    assert texts["assistant_text"] == prompt.text and texts["user_text"] == "Hello.Go on."


def changed_template(tokenizer, old, new):
    """The tokenizer with another chat template."""
    changed = replace(tokenizer, hf=copy.deepcopy(tokenizer.hf))
    assert old in changed.hf.chat_template
    changed.hf.chat_template = changed.hf.chat_template.replace(old, new)
    return changed


def test_a_template_that_changes_the_assistants_sentence_is_refused(tokenizer):
    shouting = (
        "(message['content'] | upper if message['role'] == 'assistant' else message['content'])"
    )
    changed = changed_template(tokenizer, "message['content']", shouting)
    with pytest.raises(UserError, match="changes the text of the assistant's turn 2"):
        tokenize_all(
            [p for p in built_in_prompts("deixis") if p.frame == "copula_size"], changed, CHAT
        )


def test_a_template_that_trims_the_assistants_sentence_is_refused(tokenizer):
    trimming = changed_template(tokenizer, "message['content']", "(message['content'] | trim)")
    spaced = [replace(p, text=f"{p.text} ") for p in built_in_prompts("deixis")]
    spaced = [p for p in spaced if p.frame == "copula_size"]
    tokenize_all(spaced, tokenizer, CHAT)  # the model's own template keeps the space
    with pytest.raises(UserError, match="trims the text of the assistant's turn 2"):
        tokenize_all(spaced, trimming, CHAT)


def test_deixis_without_chat_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(activation_analysis, "load_for", None)
    argv = ["--prompts", "deixis", "--output_dir", str(tmp_path)]
    assert activation_analysis.main(argv) == 2
    err = capsys.readouterr().err
    assert "--prompts deixis needs --prompt_format chat" in err and err.count("\n") == 1


def test_masses_by_hand():
    row = np.array([[[0.4, 0.1, 0.2, 0.3, 0.0]]])
    segment = np.array([[0, 2, 3, 5, -1]])
    found = final_query_masses(row, Places(np.array([[1, 4]]), np.array([[1, 3]]), segment))
    assert found["slot_mass"].item() == pytest.approx(0.3)
    assert found["segment_mass"][0, 0].tolist() == pytest.approx([0.4, 0, 0.1, 0.2, 0, 0.3])
    assert found["final_row"].dtype == np.float16
    none = Places(np.array([[1, 4]]), np.array([[-1, -1]]), segment)
    assert np.isnan(final_query_masses(row, none)["slot_mass"]).all()


def test_uniform_masses_count_the_keys_that_the_window_shows():
    """Four tokens, slot at 1 and 2: all four keys visible, or the last two only."""
    places = Places(np.array([[1, 4]]), np.array([[1, 3]]), np.array([[0, 3, 3, 3, -1]]))
    visible = np.array([[1, 2, 3, 4, 5], [1, 2, 2, 2, 2]])
    found = uniform_masses(places, [4], visible)
    assert found["slot_uniform"][0].tolist() == pytest.approx([2 / 4, 1 / 2])
    assert found["segment_uniform"][0, :, 0].tolist() == pytest.approx([1 / 4, 0])
    assert found["segment_uniform"].sum(axis=-1) == pytest.approx(np.ones((1, 2)))


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_run_holds_the_masses_of_its_patterns_both_ways(tmp_path, name):
    """Slot and segment masses against a loop over the saved patterns; streaming gives the same."""
    loaded = load_checked(save_tiny(name, tmp_path / name))
    few = [p for p in CROSSED if p.frame in ("copula_size", "modal_object", "imperative_reason")]
    tokenized = tokenize_prompts(few, loaded.tokenizer, CHAT)
    captured = attention.capture_patterns(loaded, tokenized, keep_patterns=True)
    found = captured.arrays
    for i, prompt in enumerate(tokenized):
        for layer, patterns in captured.patterns.items():
            row = patterns[i, :, len(prompt.token_ids) - 1]
            expected = row[:, slice(*prompt.slot)].sum(axis=-1)
            np.testing.assert_allclose(found["slot_mass"][i, layer], expected, atol=1e-6)
            header = [k for k, code in enumerate(prompt.segments) if SEGMENTS[code] == "template"]
            at = SEGMENTS.index("template")
            np.testing.assert_allclose(
                found["segment_mass"][i, layer, :, at], row[:, header].sum(axis=-1), atol=1e-6
            )
            np.testing.assert_allclose(found["final_row"][i, layer], row, atol=1e-3)
    np.testing.assert_allclose(found["segment_mass"].sum(axis=-1), 1, atol=1e-5)
    if name == "mistral":
        assert (found["visible_keys"][:, -1] == WINDOW).all() and found["slot_uniform"].max() == 0
    streamed = attention.capture_streaming(loaded, tokenized).arrays
    for key in ("slot_mass", "segment_mass", "slot_uniform", "segment_uniform"):
        np.testing.assert_allclose(streamed[key], found[key], atol=1e-5, err_msg=key)


def test_a_crossed_run_end_to_end(tmp_path):
    model = save_tiny("llama", tmp_path / "model")
    argv = ["--model_id", model, "--prompts", "crossed", "--prompts_per_category", "36"]
    assert activation_analysis.main([*argv, "--output_dir", str(tmp_path), "--raw", "none"]) == 0
    run = output_manager.load_run(tmp_path / "latest_run")
    assert run.crossed and run.has_slots and run.config["schema_version"] == 2
    assert set(run.frame.tolist()) == {p.frame for p in CROSSED}
    row = run.prompts[0]
    ids = [row["token_ids"][i] for i in range(*row["slot"])]
    assert [tuple(run.slot[0]), len(ids)] == [tuple(row["slot"]), 2]
    again = ["--repeat", str(tmp_path / "latest_run")]
    assert activation_analysis.main(again) == 0
    repeat = next(tmp_path.glob("repeat_*"))
    assert json.loads((repeat / "repeat.json").read_text())["verdict"] == "bit-identical"


def as_schema_1(folder):
    """Rewrite a run folder as the previous version wrote it."""
    arrays = npz.read_npz(folder / "attention.npz", list(run_arrays.ARRAYS))
    old = {name: a for name, a in arrays.items() if name not in run_arrays.ADDED}
    npz.write_npz(folder / "attention.npz", old)
    config = json.loads((folder / "experiment_config.json").read_text())
    config["schema_version"] = 1
    del config["prompts"]["crossed"]
    files.write_json(folder / "experiment_config.json", config)
    output_manager.write_manifest(folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"schema_version": 1}
    files.write_json(folder / "manifest.json", manifest)


def test_a_run_of_schema_1_is_still_read(tmp_path):
    new = make_run(n_layers=2, n_heads=2, per_category=3)
    folder = save_run(new, tmp_path)
    as_schema_1(folder)
    run = output_manager.load_run(folder)
    assert not run.crossed and not run.has_slots and run.slot_mass is None
    assert run.frame[0] == run.prompts[0]["text"].split()[0].lower()
    np.testing.assert_array_equal(run.entropy, new.entropy)
    assert len(run.take([0, 1]).frame) == 2 and run.rename({}).counts == new.counts


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("slot", lambda a: a.slot + np.array([0, 90]), "a slot lies outside its prompt"),
        ("slot_mass", lambda a: a.slot_mass + 2, "slot_mass holds a probability outside"),
        ("segment_mass", lambda a: a.segment_mass * np.nan, "segment_mass is NaN"),
        ("segment", lambda a: a.segment[:3], "segment_mass is float32"),
        ("final_row", lambda a: a.final_row[..., :2], "final_row is float16"),
    ],
)
def test_new_arrays_that_cannot_be_are_refused(tmp_path, name, change, said):
    run = make_run(n_layers=1, n_heads=1, prompts=CROSSED)
    folder = save_run(replace(run, **{name: change(run)}), tmp_path)
    with pytest.raises(UserError, match=said):
        output_manager.load_run(folder)


def test_segment_names_cover_the_codes():
    assert tokens.CODE == {name: i for i, name in enumerate(masses.SEGMENTS)}
