"""The report's sections Where it looks, Prompts, Interventions and Conversations."""

import dataclasses
import json
import re

import numpy as np
import pytest

import report
from browser import open_page, settle, start_browser
from hostile import effect_row
from prompts import load_prompts
from rolecircuits.inputs.errors import UserError
from rolecircuits.report import answers, build, conversations, edits, masses, packing, prompts
from rolecircuits.report.section import Context, Folders
from rolecircuits.report.tokens import readable_tokens
from rolecircuits.runs import files, npz
from rolecircuits.stats.masses import SEGMENTS
from synthetic import make_run

HOSTILE = "<script>window.hacked = 1</script></script>\"'`${1}<img src=x onerror=hacked=1>"
RTL = "\u202e\u05e9\u05dc\u05d5\u05dd"


def crossed_run(seed=0, per_category=8, **how):
    """A synthetic crossed run whose prompts have token strings."""
    chosen, _ = load_prompts("crossed", per_category)
    run = make_run(prompts=chosen, seed=seed, **how)
    for row, n in zip(run.prompts, run.n_tokens.tolist(), strict=True):
        words = row["text"].split()
        row["token_strings"] = ["<s>", "\u010a", *(f"\u0120{word}" for word in words), "?"][:n]
    return run


def head_rows(run):
    """Stored attention [head of the model, token], one prompt after another."""
    real = np.arange(run.final_row.shape[-1]) < run.n_tokens[:, None]
    rows = run.final_row.astype(float).transpose(1, 2, 0, 3)[:, :, real]
    return rows.reshape(-1, real.sum())


# packing


@pytest.mark.parametrize("levels", packing.LEVELS)
def test_packed_attention_comes_back_within_the_stated_error(levels):
    run = crossed_run()
    stored = head_rows(run)
    back = packing.unpack(packing.pack_all(run, levels), run)
    allowed = packing.largest_error(stored, levels)
    assert back.shape == stored.shape
    assert (np.abs(back - stored) <= allowed + 1e-12).all()
    assert np.abs(back - stored).max() > allowed.min() / 10  # steps, not the numbers themselves


def test_a_place_holds_all_prompts_and_differences_start_anew_there():
    run = crossed_run()
    order, starts = packing.column_order(run)
    assert sorted(order.tolist()) == list(range(run.n_tokens.sum()))
    first = np.cumsum(run.n_tokens) - run.n_tokens
    n_prompts = len(run.n_tokens)
    assert set(order[:n_prompts].tolist()) == set(first.tolist())  # all first tokens together
    assert starts[0] and not starts[1:n_prompts].any() and starts[n_prompts]


def test_places_behind_the_text_are_counted_from_its_end():
    run = dataclasses.replace(
        crossed_run(),
        n_tokens=np.array([4, 5]),
        span=np.array([[1, 3], [1, 4]]),
        frame=np.array(["b", "a"]),
        filler=np.array(["", ""]),
    )
    order, starts = packing.column_order(run)
    assert order.tolist() == [4, 0, 5, 1, 6, 2, 7, 8, 3]  # frame "a", the second prompt, is first
    assert starts.astype(int).tolist() == [1, 0, 1, 0, 1, 0, 1, 1, 0]


def test_what_does_not_fit_is_the_means_and_the_heads_that_matter():
    run, strength = crossed_run(n_layers=6, n_heads=8), np.zeros((6, 8))
    strength[4, 7] = 3.0
    whole = packing.pack_runs({"a": run}, {"a": strength})["a"]
    assert whole.heads is None and whole.levels == packing.LEVELS[0]
    size = len(packing.pack_all(run, packing.LEVELS[-1]).text)
    packed = packing.pack_runs({"a": run}, {"a": strength}, size // 2, size // 2)["a"]
    beyond = (run.slot_mass - run.slot_uniform[..., None]).mean(axis=0)
    most = divmod(int(beyond.argmax()), 8)
    assert (4, 7) in packed.heads and most in packed.heads
    assert 1 < len(packed.heads) < 48 and len(packed.text) < 0.6 * size
    stored, back = head_rows(run), packing.unpack(packed, run)
    means = stored.reshape(6, 8, -1).mean(axis=1)
    assert np.abs(back[:6] - means).max() < packing.largest_error(1, packed.levels)
    at = packed.heads.index((4, 7))
    assert np.abs(back[6 + at] - stored[4 * 8 + 7]).max() < packing.largest_error(1, packed.levels)
    said = prompts.describe_packing({"a": packed}, {"a": run})
    assert f"{len(packed.heads)} of 48 heads" in said and "mean over heads" in said


def test_heads_are_ordered_by_g_and_slot_in_turn():
    run = crossed_run(n_layers=2, n_heads=2)
    run = dataclasses.replace(run, slot_mass=run.slot_mass * 0, slot_uniform=run.slot_uniform * 0)
    run.slot_mass[:, 1, 0], run.slot_mass[:, 0, 1] = 0.9, 0.5
    strength = np.array([[np.nan, 0.1], [0.2, 2.0]])
    assert packing.order_heads(run, strength) == [(1, 1), (1, 0), (0, 1), (0, 0)]


def test_a_large_model_stays_inside_its_budget():
    rng = np.random.default_rng(0)
    n_prompts, shape = 360, (80, 64, 16)
    rows = rng.random((n_prompts, *shape), dtype=np.float32).astype(np.float16)
    small = crossed_run(n_layers=1, n_heads=1)
    run = dataclasses.replace(
        small,
        entropy=np.broadcast_to(np.float32(0), (n_prompts, *shape)),
        final_row=rows,
        n_tokens=np.full(n_prompts, 16),
        span=np.tile([1, 12], (n_prompts, 1)),
        slot=np.full((n_prompts, 2), -1),
        frame=np.array([f"f{i // 4}" for i in range(n_prompts)]),
        filler=np.full(n_prompts, ""),
    )
    packed = packing.pack_runs({"a": run}, {"a": rng.random((80, 64))})["a"]
    assert len(packed.heads) > 50
    assert 0.8 * packing.LARGE < len(packed.text) < 1.05 * packing.LARGE


@pytest.mark.parametrize("bits", [8, 16])
def test_packed_numbers_come_back_within_half_a_step(bits):
    values = np.random.default_rng(1).normal(size=(5, 7))
    values[2, 3] = np.nan
    plain = packing.pack_numbers(values, bits)
    back = packing.unpack_numbers(plain)
    assert np.isnan(back[2, 3]) and np.isnan(back).sum() == 1
    assert np.nanmax(np.abs(back - values)) <= plain["step"] / 2 + 1e-12
    assert plain["step"] < 0.05
    alike = packing.unpack_numbers(packing.pack_numbers(np.full(3, 0.4), bits))
    assert (alike == 0.4).all()


# tokens


def test_tokens_read_as_text():
    coffee = "\u0120caf\u00c3\u00a9"
    table = readable_tokens([coffee, "\u010a", "<|im_start|>", "\u00f0\u0141", "\u00c2\u0143", "a"])
    assert table[coffee] == " caf\u00e9" and table["\u010a"] == "\u23ce"
    assert table["\u00c2\u0143"] == "\\xad"  # bytes c2 ad: a soft hyphen
    assert table["<|im_start|>"] == "<|im_start|>" and table["a"] == "a"
    assert set(table["\u00f0\u0141"]) == {"\ufffd"}
    pieces = readable_tokens(["\u2581Who", "<0x0A>", "\u00e9", "\x1b[31m\u202e"])
    assert pieces["\u2581Who"] == " Who" and pieces["<0x0A>"] == "\u23ce"
    assert pieces["\u00e9"] == "\u00e9" and pieces["\x1b[31m\u202e"] == "\\x1b[31m\\u202e"


# where it looks


def test_parts_sum_to_one_and_the_slot_is_taken_out_of_the_text():
    run = crossed_run()
    found = masses.run_masses(run)
    assert found["parts"] == ["sink", "user_text", "slot"]
    np.testing.assert_allclose(found["heads"].sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["uniform"].sum(axis=-1), 1, atol=1e-5)
    c = found["categories"].index("confounder")
    rows = run.category == "confounder"
    np.testing.assert_allclose(
        found["heads"][c, ..., 2], run.slot_mass[rows].mean(axis=0), atol=1e-6
    )
    text = SEGMENTS.index("user_text")
    rest = run.segment_mass[rows][..., text].mean(axis=0) - run.slot_mass[rows].mean(axis=0)
    np.testing.assert_allclose(found["heads"][c, ..., 1], rest, atol=1e-6)


def test_a_slot_in_the_assistants_turn_is_taken_out_of_that_text():
    run = crossed_run()
    n = run.entropy.shape[-1]
    for row in run.prompts:
        row["segments"] = [0] + [SEGMENTS.index("assistant_text")] * (n - 1)
    swapped = run.segment_mass.copy()
    a, b = SEGMENTS.index("user_text"), SEGMENTS.index("assistant_text")
    swapped[..., [a, b]] = swapped[..., [b, a]]
    flat = run.segment_uniform.copy()
    flat[..., [a, b]] = flat[..., [b, a]]
    run = dataclasses.replace(run, segment_mass=swapped, segment_uniform=flat)
    found = masses.run_masses(run)
    assert found["parts"] == ["sink", "assistant_text", "slot"]
    np.testing.assert_allclose(found["heads"].sum(axis=-1), 1, atol=1e-5)


# interventions and answers


def edit_rows():
    """Two candidates of layer 1 and their controls, over all prompts and one category."""
    rows = []
    for category in ("self_referent", "all"):
        for head in range(4):
            candidate = head in (1, 2)
            others = " ".join(f"h{h}" for h in range(4) if h != head)
            row = effect_row(category) | {"intervention": f"h{head}", "n": 8, "pool": 4}
            row |= {"type": "head", "layer": 1, "head": str(head), "method": "zero_out"}
            row |= {"role": "candidate" if candidate else "control"}
            row |= {"controls": others if candidate else ""}
            for place, metric in enumerate(edits.METRICS):
                row[metric] = 0.01 * head + 0.1 * place
                row[f"{metric}_rank"] = 4.0 - head if candidate else None
            rows.append(row)
    return rows


def test_a_candidate_stands_beside_all_heads_of_its_pool():
    rows = edit_rows()
    plain = edits.plain_rows(rows)
    first = next(row for row in plain if row["role"] == "candidate")
    pool = [plain[place] for place in first["pool_rows"]]
    assert [row["head"] for row in pool] == ["0", "2", "3"]
    assert {row["category"] for row in pool} == {"self_referent"}
    cells = edits.candidate_rows(rows)
    assert [row["name"] for row in cells] == [f"layer 1 head {h}, zero_out" for h in (1, 2)]
    assert cells[0]["cells"][0] == {"effect": "0.010 [0.050, 0.200]", "rank": "3 of 4"}
    assert cells[0]["cells"][1]["effect"].startswith("+0.110 [+0.050")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"q": 0.01, "mean_rank": 1.5}, "they do more than other heads"),
        ({"q": 0.01, "mean_rank": 3.5}, "they do less than other heads"),
        ({"q": 0.9, "mean_rank": 2.0}, "could be a random choice"),
        ({"q": 0.9, "mean_rank": 2.0, "smallest_p": 0.5}, "too few for a test"),
    ],
)
def test_the_test_of_ranks_in_words(numbers, said):
    test = {"type": "head", "change": "zero_out", "metric": "kl", "n_candidates": 2, "n_layers": 1}
    test |= {"expected_rank": 2.5, "p": 0.01, "smallest_p": 0.001} | numbers
    assert said in edits.describe_test(test)["said"]


def test_changes_of_an_answer_are_marked():
    marked = answers.mark_changes("I am old now.", "I am not now.\n")
    assert marked == [
        ("same", "I am "),
        ("gone", "old"),
        ("new", "not"),
        ("same", " now."),
        ("new", "\n"),
    ]
    assert answers.shown_parts("", "a\nb") == [("new", "a\u23ceb")]
    assert answers.mark_changes("same", "same") == [("same", "same")]
    long = "word " * answers.MAX_WORDS
    assert answers.mark_changes(long, long + "x") == [("gone", long), ("new", long + "x")]


def generation(run, edited):
    """generation_results.json of a run's prompts; `edited` answers the first prompt."""
    rows = [
        {"id": row["id"], "category": row["category"], "prompt": row["text"], "text": "Yes, I do."}
        for row in run.prompts
    ]
    changes = [
        {key: row[key] for key in ("id", "category", "prompt")}
        | {"intervention": "h1", "baseline": row["text"], "edited": row["text"]}
        for row in rows
    ]
    changes[0]["edited"] = edited
    return {"baseline": rows, "changes": changes}


def test_answers_go_to_the_runs_of_the_model_that_gave_them():
    base, instruct = crossed_run(model_id="base"), crossed_run(model_id="instruct")
    runs = {("crossed", "base"): base, ("crossed", "instruct"): instruct}
    results = generation(instruct, "No.")
    found = answers.answers_of_runs(runs, results, instruct.config)
    assert list(found) == [("crossed", "instruct")]
    assert found["crossed", "instruct"][instruct.prompts[0]["id"]] == "Yes, I do."
    chat = {"model": instruct.config["model"], "prompts": {"format": "chat"}}
    assert answers.answers_of_runs(runs, results, chat) == {}


@pytest.mark.parametrize("broken", [{"changes": []}, {"baseline": [{"id": 1}], "changes": []}, []])
def test_damaged_answers_are_refused(tmp_path, broken):
    files.write_json(tmp_path / "generation_results.json", broken)
    with pytest.raises(UserError, match="generation_results.json"):
        answers.read_answers(tmp_path)


# conversations


def documents_arrays():
    """documents.npz of two conversations: entropy rises in the first, falls in the second."""
    rng = np.random.default_rng(0)
    arrays = {
        "document_id": np.array(["d1", "d2"]),
        "category": np.array(["self_referent", "neutral"]),
        "n_tokens": np.array([30, 20]),
        "frame": np.array(["are", "is"]),
        "turn_document": np.array([0, 0, 0, 1, 1]),
        "turn_role": np.array(["user", "assistant", "user", "user", "assistant"]),
        "turn_span": np.array([[1, 5], [6, 20], [21, 29], [1, 9], [10, 19]]),
    }
    drift = np.array([0.2, 0.3, 0.4, 0.5, 0.3])
    for kind in conversations.VALUES:
        spread = rng.random((5, 4, 3)) * 0.01
        arrays[f"turn_{kind}"] = (drift[:, None, None] + spread).astype(np.float32)
        arrays[f"whole_{kind}"] = np.stack([np.full((4, 3), x, np.float32) for x in (0.3, 0.4)])
    return arrays


TEXTS = {
    "d1": [("user", f"{HOSTILE}"), ("assistant", "I say."), ("user", "so")],
    "d2": [("user", "x" * 5000), ("assistant", "long")],
}


def documents_folder(tmp_path, model):
    folder = tmp_path / "documents"
    folder.mkdir()
    npz.write_npz(folder / "documents.npz", documents_arrays())
    config = {"model": model, "arguments": {"documents": "conv.jsonl"}}
    config["documents"] = {"failed": [{"id": "d3", "reason": f"too long {HOSTILE}"}]}
    files.write_json(folder / "experiment_config.json", config)
    return folder


def test_texts_are_shown_only_where_they_are_those_of_the_run():
    arrays = documents_arrays()
    texts = conversations.turn_texts(arrays, TEXTS)
    assert texts[1] == "I say." and texts[3].endswith("[3,000 more characters]")
    assert len(texts[3]) < conversations.MAX_LETTERS + 40
    assert conversations.turn_texts(arrays, {"d1": TEXTS["d1"]}) == []
    assert conversations.turn_texts(arrays, TEXTS | {"d2": [("tool", "a"), ("user", "b")]}) == []


def test_drift_and_indices_are_those_of_document_stats(tmp_path):
    arrays = documents_arrays()
    indices, drifts = conversations.infer_all(arrays)
    rows = conversations.document_rows(arrays, conversations.documents_kept(arrays))
    assert rows[0]["user_normalised_drift"] == pytest.approx(-0.2, abs=0.011)  # entropy rises
    assert rows[0]["user_sink_mass_drift"] == pytest.approx(0.2, abs=0.011)
    assert np.isnan([row["assistant_normalised_drift"] for row in rows if len(row) > 12]).all()
    found = conversations.plain_indices(indices)["normalised"]["rfc"]
    np.testing.assert_allclose(found["estimate"], 1 - 0.3 / 0.4, atol=1e-6)
    assert np.isnan(found["low"]).all()  # two documents: no interval
    shown = conversations.index_means(indices)[0]
    assert shown[:3] == ("RFC", "normalised entropy", "+0.250") and shown[3]
    role, quantity, n, drift, p, why = conversations.drift_cells(drifts[0])
    assert (role, n, p) == ("user", 1, "-") and drift.startswith("-0.2") and why
    del arrays["frame"]  # a run of before first words were kept
    assert conversations.infer_all(arrays)[0] == {}


def test_many_documents_keep_the_first_that_fit(monkeypatch):
    monkeypatch.setattr(conversations, "MAX_TURNS", 3)
    arrays = documents_arrays()
    kept = conversations.documents_kept(arrays)
    assert kept.tolist() == [0]
    turns = conversations.plain_turns(arrays, kept, [])
    assert turns["document"].tolist() == [0, 0, 0] and turns["text"] is None


def test_a_damaged_documents_run_is_refused(tmp_path):
    arrays = documents_arrays() | {"turn_document": np.array([0, 0, 0, 1, 7])}
    npz.write_npz(tmp_path / "documents.npz", arrays)
    config = {"model": {"id": "m"}, "arguments": {"documents": "x.jsonl"}, "documents": {}}
    files.write_json(tmp_path / "experiment_config.json", config)
    with pytest.raises(UserError, match="damaged"):
        conversations.conversations_section(Context({}, folders=Folders(documents=tmp_path)))


def test_texts_come_from_the_file_that_was_fed_if_it_is_unchanged(tmp_path):
    fed = tmp_path / "conv.jsonl"
    fed.write_text('{"id": "d1", "text": "hello"}\n', encoding="utf-8")
    config = {"arguments": {"documents": str(fed)}}
    config["documents"] = {"sha256": report.sha256_of(fed)}
    files.write_json(tmp_path / "experiment_config.json", config)
    assert report.read_texts(tmp_path) == {"d1": [("text", "hello")]}
    fed.write_text('{"id": "d1", "text": "hello!"}\n', encoding="utf-8")
    assert report.read_texts(tmp_path) is None
    with pytest.raises(UserError, match="is not the file"):
        report.read_texts(tmp_path, fed)
    with pytest.raises(UserError, match="no such file"):
        report.read_texts(tmp_path, tmp_path / "gone.jsonl")


# the page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(path of a report with all sections, its base run, its text)."""
    folder = tmp_path_factory.mktemp("report")
    base, instruct = crossed_run(model_id="m"), crossed_run(seed=1, model_id="m2")
    base, instruct = (
        dataclasses.replace(
            run,
            span=run.span - [0, 1],  # the last token is the template's
            filler=np.full(len(run.filler), ""),  # frames alone tell sentences apart
        )
        for run in (base, instruct)
    )
    base.config["arguments"] = {"output_type": "base", "prompts": "crossed"}
    instruct.config["arguments"] = {"output_type": "instruct", "prompts": "crossed"}
    first = base.prompts[0]
    first["text"] = HOSTILE + RTL + "x" * 10_000
    first["token_strings"] = [HOSTILE, RTL, *first["token_strings"][2:]]
    edited, generated = folder / "edits", folder / "answers"
    for own in (edited, generated):
        own.mkdir()
        files.write_json(own / "experiment_config.json", base.config)
    tests = [{"type": "head", "change": "zero_out", "metric": "kl"}]
    tests[0] |= dict.fromkeys(edits.SET_NUMBERS, 1.0)
    rows = edit_rows()
    files.write_json(edited / "effects.json", {"rows": rows, "set_tests": tests})
    results = generation(base, f"Yes, I {HOSTILE}.")
    files.write_json(generated / "generation_results.json", results)
    documents = documents_folder(folder, base.config["model"])
    folders = Folders(interventions=edited, answers=(generated,), documents=documents, texts=TEXTS)
    text = build.build_report([base, instruct], folders)
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path, base, text


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


def test_without_scripts_every_section_can_be_read(page):
    text = re.sub(r"<script.*?</script>", "", page[2], flags=re.DOTALL)
    for wanted in (
        "too few for a test",
        "<del>do</del>",
        "slot (words of the person)",
        "The first sentence, layer",
        "d3</bdi>",
        "last\nthird of the turns",
    ):
        assert wanted in text, wanted
    assert "window.hacked" in text and "<script>window" not in text and "<img" not in text


@pytest.fixture
def opened(page, browser):
    open_page(browser, page[0])
    settle(browser, {"side": "base", "layer": None, "head": None, "prompt": None})
    yield browser
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not severe, severe
    assert browser.execute_script("return window.hacked") is None


SHADES = """return Array.from(document.querySelectorAll('#prompts-reader .person'), (person) =>
  Array.from(person.querySelectorAll('.token'), (t) => [t.textContent, t.title,
    Number(t.style.getPropertyValue('--a'))]))"""


def open_row(browser, run, prompt):
    """Click on the row of a prompt; returns the shades of all persons shown."""
    find = "return document.querySelector(`#prompts-table [data-prompt='${arguments[0]}']`)"
    row = browser.execute_script(find, run.prompts[prompt]["id"])
    browser.execute_script("arguments[0].closest('button').click()", row)
    settle(browser)
    return browser.execute_script(SHADES)


def test_a_row_opens_its_tokens_and_the_other_persons(opened, page):
    _, run, _ = page
    prompt = 3
    shades = open_row(opened, run, prompt)
    same = (run.frame == run.frame[prompt]) & (run.filler == run.filler[prompt])
    assert len(shades) == same.sum() == 4
    assert [token for token, _, _ in shades[0]][2:-1] == [
        f" {word}" for word in run.prompts[prompt]["text"].split()
    ]
    who = opened.execute_script(
        "return Array.from(document.querySelectorAll('#prompts-reader .who'), (e) => e.textContent)"
    )
    assert who[0].startswith("self-referent") and any(w.startswith("confounder") for w in who[1:])
    assert opened.execute_script("return document.activeElement.id") == "prompts-reader"


def expected_shades(run, prompt, layer, head=None, sinkfree=False):
    row = run.final_row[prompt, layer, :, : run.n_tokens[prompt]].astype(float)
    row = row.mean(axis=0) if head is None else row[head]
    if sinkfree:
        row[0] = 0
        row /= row.sum()
    return np.sqrt(row)


def test_the_shade_is_the_attention_of_layer_head_and_kind(opened, page):
    _, run, _ = page
    open_row(opened, run, 3)
    for state, how in (
        ({"layer": 2, "head": None}, {"layer": 2}),
        ({"layer": 1, "head": 2}, {"layer": 1, "head": 2}),
        ({"layer": 3, "head": 0}, {"layer": 3, "head": 0}),
        ({"kind": "sinkfree"}, {"layer": 3, "head": 0, "sinkfree": True}),
    ):
        settle(opened, state)
        shown = [a for _, _, a in opened.execute_script(SHADES)[0]]
        np.testing.assert_allclose(shown, expected_shades(run, 3, **how), atol=0.01)
    settle(opened, {"kind": "normalised"})


def test_slider_and_head_menu_change_the_shades(opened, page):
    _, run, _ = page
    open_row(opened, run, 3)
    opened.execute_script(
        "const slider = document.getElementById('prompts-layer'); slider.value = 0;"
        "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change'));"
    )
    settle(opened)
    shown = [a for _, _, a in opened.execute_script(SHADES)[0]]
    np.testing.assert_allclose(shown, expected_shades(run, 3, 0), atol=0.01)
    opened.execute_script(
        "const menu = document.getElementById('prompts-head'); menu.value = '1';"
        "menu.dispatchEvent(new Event('change'));"
    )
    settle(opened)
    assert opened.execute_script("return [report.state.layer, report.state.head]") == [0, 1]
    shown = [a for _, _, a in opened.execute_script(SHADES)[0]]
    np.testing.assert_allclose(shown, expected_shades(run, 3, 0, 1), atol=0.01)


def test_the_heads_that_read_the_slot_are_named(opened, page):
    _, run, _ = page
    open_row(opened, run, 3)
    first = opened.execute_script(
        "const b = document.querySelector('#prompts-heads button'); b.click(); return b.textContent"
    )
    layer, head = map(int, np.unravel_index(run.slot_mass[3].argmax(), (4, 3)))
    assert first.startswith(f"{layer}/{head}: ")
    assert float(first.split(": ")[1]) == pytest.approx(run.slot_mass[3, layer, head], abs=0.02)
    settle(opened)
    assert opened.execute_script("return [report.state.layer, report.state.head]") == [layer, head]


def test_a_hostile_prompt_is_text(opened, page):
    _, run, _ = page
    shades = open_row(opened, run, 0)
    assert shades[0][0][0] == HOSTILE and shades[0][1][0] == RTL.replace("\u202e", "\\u202e")
    assert opened.execute_script("return document.querySelectorAll('main img').length") == 0
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert opened.execute_script(wide)


def test_values_of_prompts_are_those_of_the_statistics(opened, page):
    from rolecircuits.stats.indices import prompt_values

    _, run, _ = page
    settle(opened, {"layers": [1, 2], "layer": 1, "head": 2, "kind": "sinkfree"})
    cells = opened.execute_script(
        "return Array.from(document.querySelectorAll('#prompts-table tbody tr'), (row) =>"
        " [row.querySelector('[data-prompt]').dataset.prompt,"
        " ...Array.from(row.querySelectorAll('td.number'), (td) => td.textContent)])"
    )
    values = prompt_values(run, "sinkfree")
    ids = run.prompt_id.tolist()
    assert len(cells) == len(ids)
    for name, mean, head, *_ in cells:
        own = values[ids.index(name)]
        assert float(mean) == pytest.approx(own[1:3].mean(), abs=2e-3)
        assert float(head) == pytest.approx(own[1, 2], abs=2e-3)
    settle(opened, {"layers": [0, 3], "kind": "normalised"})


def test_masses_follow_layers_and_head(opened, page):
    _, run, _ = page
    cell = (
        "return Array.from(document.querySelectorAll('#masses-table tbody tr'), (row) =>"
        " Array.from(row.children, (td) => td.textContent))"
    )
    found = masses.run_masses(run)
    for state, expected in (
        ({"layers": [0, 3]}, found["heads"].mean(axis=(1, 2))),
        ({"layers": [2, 2]}, found["heads"][:, 2].mean(axis=1)),
        ({"layer": 3, "head": 1}, found["heads"][:, 3, 1]),
    ):
        settle(opened, state)
        rows = opened.execute_script(cell)
        shown = np.array([[float(x) for x in row[1:-1]] for row in rows]).T
        np.testing.assert_allclose(shown, expected, atol=0.004)
    settle(opened, {"layers": [0, 3]})


def test_menus_of_interventions_act(opened):
    read = "return document.querySelector('#edits-table tbody tr').textContent"
    before = opened.execute_script(read)
    opened.execute_script(
        "const menu = document.getElementById('edits-metric'); menu.value = 'rfc_change';"
        "menu.dispatchEvent(new Event('change'));"
    )
    settle(opened)
    after = opened.execute_script(read)
    assert before != after and "+0.110 [+0.050, +0.200]" in after
    opened.execute_script("document.querySelector('#edits-table td button').click()")
    settle(opened)
    assert opened.execute_script("return [report.state.layer, report.state.head]") == [1, 1]


def test_a_conversation_shows_its_turns(opened):
    said = (
        "return Array.from(document.querySelectorAll('#conversations-turns .said'), (e) =>"
        " e.textContent)"
    )
    assert opened.execute_script(said) == [HOSTILE, "I say.", "so"]
    opened.execute_script(
        "const menu = document.getElementById('conversations-document'); menu.value = '1';"
        "menu.dispatchEvent(new Event('change'));"
    )
    settle(opened)
    assert opened.execute_script(said)[1] == "long"
    entropy = opened.execute_script(
        "return document.querySelector('#conversations-turns .turn').children[1].textContent"
    )
    shown = float(entropy.split()[-1])
    assert shown == pytest.approx(documents_arrays()["turn_normalised"][3].mean(), abs=2e-3)


@pytest.mark.parametrize("name", ["masses", "prompts", "edits", "conversations"])
def test_every_section_offers_its_numbers(opened, name):
    links = opened.execute_script(
        f"return Array.from(document.querySelectorAll('#{name} > .numbers .download'), (e) =>"
        " e.textContent)"
    )
    assert links and all(link.endswith(".csv") for link in links)
    text = opened.execute_async_script(
        "const done = arguments[1], make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { URL.createObjectURL = make;"
        "  blob.text().then(done); return make.call(URL, blob); };"
        f"document.querySelector('#{name} > .numbers .download').click();",
        None,
    )
    header = text.split("\r\n")[0]
    assert header.startswith("model,set,format,run") and text.count("\r\n") > 4


def test_the_datas_json_is_no_html(page):
    blocks = re.findall(
        r'<script type="application/json" id="(\w+)-data">(.*?)</script>', page[2], re.DOTALL
    )
    assert {"masses", "prompts", "edits", "conversations"} <= {name for name, _ in blocks}
    for _, text in blocks:
        assert "<" not in text
        json.loads(text)
