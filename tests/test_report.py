"""The report: what it embeds are the numbers of the stats functions, nothing in it runs that is not
ours, it asks nothing of a network, and in a browser its parts follow one another.

The browser is Chromium of the distribution, headless; without it those tests are skipped.
"""

import base64
import colorsys
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import report
from browser import open_page, requests_of, settle, start_browser, wait_for
from prompts import load_prompts
from rolecircuits.inputs.errors import UserError
from rolecircuits.report import build, charts, heads, page, palette, section, summary
from rolecircuits.stats import contrasts, indices, role_tests, run_pairs
from rolecircuits.stats.units import frame_values, labels_of
from synthetic import make_run

NAMES = ("summary", "layers", "heads", "comparison", "method")
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"> <!-- <script>",
    "'\"`${document.title='owned'}` {{ 7 * 7 }} {% raw %} &lt;",
    "\u202eright to left\u202c \u2028 \u0085 \x1b[31mred\x1b[0m \ud83d",
    "w" * 10_000,
)
MAP_CELLS = "#heads-map svg .mark-rect.role-mark.layer_0_marks path"
SET_NAME = '"><script>document.title=1<!-- .csv'


def synthetic_run(side, prompts="crossed", effect=0.3, **options):
    chosen = load_prompts(prompts, per_category=36 if prompts == "crossed" else 30)[0]
    run = make_run(
        prompts=chosen,
        effect=effect,
        first_words=prompts == "original",
        **{"n_layers": 5} | options,
    )
    run.config["arguments"] = {"prompts": prompts, "output_type": side}
    return run


@pytest.fixture(scope="module")
def runs():
    return [
        synthetic_run(side, prompts, effect, seed=seed)
        for seed, (side, prompts, effect) in enumerate(
            [
                ("base", "original", 0.1),
                ("instruct", "original", 0.5),
                ("base", "crossed", 0.2),
                ("instruct", "crossed", 0.6),
            ]
        )
    ]


@pytest.fixture(scope="module")
def built(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report.write_report(runs, {}, path)


def embedded(path, name):
    """The JSON that a section's script gets."""
    text = path.read_text(encoding="utf-8")
    found = re.search(
        rf'<script type="application/json" id="{name}-data">(.*?)</script>', text, re.S
    )
    own = json.loads(found[1])
    if "packed" in own:
        own["data"] = json.loads(unpack(own.pop("packed"), np.uint8).tobytes())
    return own


def unpack(text, dtype):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=dtype)


def as_array(values):
    return np.array([np.nan if value is None else value for value in values], dtype=float)


# what is embedded


def test_runs_are_grouped_crossed_first_base_before_instruct(runs):
    keys = [("crossed", "base"), ("crossed", "instruct"), ("original", "base")]
    assert list(build.order_runs(runs)) == [*keys, ("original", "instruct")]
    assert build.order_runs(runs)["crossed", "instruct"] is runs[3]


def test_two_runs_of_one_type_are_taken_in_their_order():
    two = [synthetic_run("instruct", n_layers=2), synthetic_run("instruct", n_layers=2, seed=1)]
    ordered = build.order_runs(two)
    assert ordered["crossed", "base"] is two[0] and ordered["crossed", "instruct"] is two[1]
    with pytest.raises(UserError, match="3 runs of the prompt set crossed"):
        build.order_runs([*two, two[0]])


@pytest.mark.parametrize(("key", "number"), [("crossed|instruct", 3), ("original|instruct", 1)])
def test_layers_are_those_of_the_stats_functions(built, runs, key, number):
    data = embedded(built, "layers")["data"]["runs"][key]
    for kind in indices.KIND_NAMES:
        found = role_tests.infer_layers(runs[number], kind)
        for index in indices.INDICES:
            shown, own = data[kind]["indices"][index], found[index]
            for name in ("estimate", "low", "high"):
                wanted = own[name] - own["null"]
                np.testing.assert_allclose(as_array(shown[name]), wanted, rtol=1e-4, atol=1e-6)
            for name in ("null", "q", "p_max"):
                np.testing.assert_allclose(as_array(shown[name]), own[name], rtol=1e-5)
    assert any(data["raw"]["indices"]["rsi"]["null"]) == key.startswith("original")


def test_heads_are_those_of_the_stats_functions(built, runs):
    data = embedded(built, "heads")["data"]
    for kind in indices.KIND_NAMES:
        values = frame_values(runs[2], indices.prompt_values(runs[2], kind))
        for name, contrast in contrasts.available_contrasts(runs[2].category).items():
            own = contrasts.compare_categories(values, *labels_of(runs[2]), contrast)
            packed = data["runs"]["crossed|base"]["tests"][kind][name]
            shown = unpack(packed, np.float32).reshape(len(heads.MEASURES), 5, 3)
            for measure, array in zip(heads.MEASURES, shown, strict=True):
                wanted = own.get(measure, own.get("difference"))
                np.testing.assert_allclose(array, wanted, rtol=2e-4, err_msg=f"{kind} {measure}")
        points = data["runs"]["crossed|base"]["points"][kind]
        whole = unpack(points["packed"], np.uint8).reshape(15, len(values)).T
        low, high = unpack(points["ends"], np.float32).reshape(2, 15)
        shown = low + whole / data["steps"] * (high - low)
        step = (high - low) / data["steps"]
        assert (np.abs(shown - values.reshape(len(values), 15)) <= 0.51 * step + 1e-7).all()


def test_differences_are_those_of_the_comparison(built, runs):
    matched, _ = run_pairs.match_runs(*runs[2:])
    estimates, _ = run_pairs.estimate_pair(matched)
    shown = embedded(built, "comparison")["data"]["sets"]["crossed"]
    for kind in indices.KIND_NAMES:
        for index in indices.INDICES:
            own = estimates[kind][index]["diff"]
            value = own.get("value", own.get("estimate")) - own["null"]
            np.testing.assert_allclose(
                shown[kind]["indices"][index]["diff"]["estimate"], value, rtol=1e-5
            )
            p = as_array(shown[kind]["indices"][index]["diff"]["p_max"])
            np.testing.assert_allclose(p, own["p_max"], rtol=1e-5)
        compared = run_pairs.estimate_contrasts(
            matched, contrasts.available_contrasts(runs[2].category), kind=kind
        )
        for name, sides in compared.items():
            for side, own in sides.items():
                value = own.get("value", own.get("estimate"))
                np.testing.assert_allclose(
                    shown[kind]["contrasts"][name][side]["estimate"], value, rtol=1e-5
                )


def test_a_pair_with_other_prompts_is_cut_to_what_both_hold(runs):
    half = runs[3].take(np.flatnonzero(runs[3].frame != runs[3].frame[0]))
    whole = {"base": runs[2], "instruct": half}
    found = {side: build.numbers.run_numbers(run) for side, run in whole.items()}
    pair = build.numbers.pair_numbers(whole, found)
    matched, _ = run_pairs.match_runs(runs[2], half)
    own = role_tests.infer_layers(matched["base"], "normalised")["rfc"]
    assert pair.frames == 35 and any("left out" in note for note in pair.notes)
    np.testing.assert_array_equal(pair.indices["normalised"]["rfc"]["base"]["low"], own["low"])


def test_tables_are_packed_with_their_columns(built, runs):
    table = embedded(built, "layers")["tables"]["layers.csv"]
    values = dict(
        zip(table["columns"], json.loads(unpack(table["packed"], "u1").tobytes()), strict=True)
    )
    assert table["columns"][:4] == ["model", "set", "format", "run"]
    assert len(values["layer"]) == 4 * 3 * 2 * 5
    own = role_tests.infer_layers(runs[2], "normalised")["rfc"]["estimate"]
    first = [
        value
        for value, *place in zip(
            values["estimate"],
            values["set"],
            values["run"],
            values["kind"],
            values["index"],
            strict=True,
        )
        if place == ["crossed", "base", "normalised", "rfc"]
    ]
    np.testing.assert_allclose(first, own, rtol=1e-5)


def test_a_large_report_leaves_out_points_and_says_of_which_heads(runs, monkeypatch):
    context = section.Context(build.order_runs(runs[2:]))
    context.numbers = {key: build.numbers.run_numbers(run) for key, run in context.runs.items()}
    size = context.numbers["crossed", "base"].values["raw"].size
    assert heads.choose_points(context)[0] == tuple(indices.KIND_NAMES)
    monkeypatch.setattr(heads, "POINTS_LIMIT", 2 * size)
    assert heads.choose_points(context) == (("normalised",), dict.fromkeys(context.runs))
    monkeypatch.setattr(heads, "POINTS_LIMIT", 4 * len(labels_of(runs[2])[0]))
    kinds, chosen = heads.choose_points(context)
    found = context.numbers["crossed", "base"].contrast_heads["normalised"]
    strength = np.max([np.abs(own["g"]) for own in found.values()], axis=0).ravel()
    assert kinds == ("normalised",)
    assert sorted(np.argsort(-strength)[:2]) == chosen["crossed", "base"].tolist()


def test_rounded_floats_keep_four_digits_and_nan():
    values = np.array([0.1, -1 / 3, 1e-9, 123.456, 0.0, np.nan])
    np.testing.assert_allclose(heads.round_bits(values), values, rtol=1 / 30_000)


# what cannot run


def test_colours_are_those_of_the_figures_and_can_be_seen():
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's example
    style = (page.TEMPLATES / "style.css").read_text(encoding="utf-8")
    sheet = palette.style_sheet().split("@media")
    for paper, text in zip((palette.PAPER, palette.DARK_PAPER), sheet, strict=True):
        assert f"--paper: {paper};" in style
        shown = dict(re.findall(r"--([\w-]+): (#\w{6});", text))
        for name, drawn in palette.COLOURS.items():
            assert palette.contrast(shown[name], paper) >= 3, name
            hues = [colorsys.rgb_to_hls(*bytes.fromhex(c[1:]))[0] for c in (drawn, shown[name])]
            assert abs((hues[0] - hues[1] + 0.5) % 1 - 0.5) < 0.02, name
    looks = palette.category_looks(["neutral", "mine"])
    assert [own["colour"] for own in looks.values()] == [
        "var(--category-neutral)",
        "var(--other-0)",
    ]


def test_the_summary_answers_its_questions(runs):
    context = section.Context(build.order_runs(runs))
    context.numbers, context.pairs = build.compute(context, ())
    asked = {one["question"]: one["lines"] for one in summary.answer_questions(context)}
    found = role_tests.infer_layers(runs[3], "normalised")["rfc"]
    passed = summary.show_ranges(np.flatnonzero(found["p_primary"] < 0.05))
    said = next(
        line
        for line in asked["Which layers differ, and by how much?"]
        if line.startswith("crossed, instruct: RFC")
    )
    assert f"({passed}; max-T)" in said and "more focused than on neutral" in said
    mass = runs[3].slot_mass.mean(axis=0)
    layer, head = np.unravel_index(mass.argmax(), mass.shape)
    assert (
        f"layer {layer} head {head} ({mass.max():.2f})" in asked["Which heads read the person?"][1]
    )
    assert asked["Is it the first word?"][0].startswith("crossed: no")
    assert "--sweep" in asked["What happens if a head is cut?"][0]


def test_vendored_libraries_are_what_their_list_says():
    listed = json.loads((page.VENDOR / "vendor.json").read_text(encoding="utf-8"))["files"]
    assert [entry["file"] for entry in listed] == list(page.LIBRARIES)
    licences = (page.VENDOR / "LICENSES.txt").read_text(encoding="utf-8")
    for entry in listed:
        content = (page.VENDOR / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert f"{entry['package']} {entry['version']}" in licences
        assert all(f"{n} {v.split()[0]}" in licences for n, v in entry["bundles"].items())


class Scripts(HTMLParser):
    """The scripts and styles of a page, its policy, and whatever it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.running, self.data, self.fetched, self.policy, self.inside = [], [], [], "", None
        self.handlers = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.inside = {"script": self.data if "type" in given else self.running}.get(tag)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.fetched += [
            v for n, v in attributes if n in ("src", "href") and not v.startswith(("#", "data:,"))
        ]
        self.handlers += [n for n, _ in attributes if n.startswith("on") or n == "style"]

    def handle_data(self, data):
        if self.inside is not None:
            self.inside.append(data)

    def handle_endtag(self, tag):
        self.inside = None


def test_only_our_scripts_may_run_and_nothing_is_fetched(built):
    found = Scripts(built.read_text(encoding="utf-8"))
    assert "default-src 'none'" in found.policy and "unsafe" not in found.policy
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in found.running]
    names = re.findall(r'<section id="(\w+)"', built.read_text(encoding="utf-8"))
    assert set(NAMES) <= set(names)
    assert len(hashes) == 3 + 1 + sum(map(script_of, names))
    assert all(f"'sha256-{digest}'" in found.policy for digest in hashes)
    assert not found.fetched and not found.handlers


def script_of(name):
    return (page.TEMPLATES / f"{name}.js").is_file()


def test_scripts_never_write_html():
    for path in page.TEMPLATES.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        words = (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        )
        assert not [word for word in words if word in text], path.name


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_json_ends_no_script(text):
    shown = page.embed_json({text: [text, np.float64("nan"), np.int64(3)]})
    assert "<" not in shown
    assert json.loads(shown) == {text: [text, None, 3]}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    two = [
        synthetic_run(side, n_layers=2, n_heads=2, seed=i) for i, side in enumerate(section.SIDES)
    ]
    for run in two:
        run.config["model"]["id"] = "".join(HOSTILE)
        run.config["arguments"]["prompts"] = SET_NAME
        run.config["created"] = HOSTILE[1]
        for i, row in enumerate(run.prompts):
            row["text"] = f"{HOSTILE[i % len(HOSTILE)]} {row['text']}"
        frames = {
            name: f"{name}{HOSTILE[i % 4]}" for i, name in enumerate(dict.fromkeys(run.frame))
        }
        run.frame = np.array([frames[name] for name in run.frame])
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    return report.write_report(two, {}, path)


def test_hostile_texts_make_no_script_of_their_own(hostile, built):
    own, other = (Scripts(p.read_text(encoding="utf-8")) for p in (hostile, built))
    assert own.running == other.running and own.policy == other.policy
    assert not own.fetched and not own.handlers


# what is refused


def test_what_cannot_be_written_is_refused_before_work(tmp_path, runs, capsys):
    assert report.main([str(tmp_path / "no_run"), "--output", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    with pytest.raises(UserError, match="comparison_summary"):
        report.write_report(runs[:1], {"comparison": tmp_path}, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_one_run_has_no_comparison(runs, tmp_path):
    path = report.write_report(runs[:1], {}, tmp_path / "new" / "r.html")
    text = path.read_text(encoding="utf-8")
    assert 'id="layers-data"' in text and 'id="comparison' not in text
    assert "There is no crossed set here" in text


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def pick(driver, name, value):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", f"menu-{name}")).select_by_value(value)
    settle(driver, {})


def text_of(driver, element):
    return driver.find_element("id", element).text


def test_the_page_is_drawn_without_an_error_or_a_request(browser, built):
    open_page(browser, built)
    assert [e for e in browser.get_log("browser") if e["level"] != "INFO"] == []
    assert requests_of(browser) == []
    for name in NAMES:
        assert browser.find_element("id", name).is_displayed()
    drawn = browser.find_elements("css selector", ".chart svg, .chart canvas")
    assert len([chart for chart in drawn if chart.is_displayed()]) >= 7
    assert not browser.find_element("id", "trouble").is_displayed()


def test_a_script_that_is_not_ours_does_not_run(browser, built):
    open_page(browser, built)
    title = browser.title
    browser.execute_script("""
        const planted = document.createElement("script");
        planted.textContent = "document.title = 'ran'";
        document.body.append(planted);
        document.body.insertAdjacentHTML("beforeend", "<img src=data: onerror=document.title=1>");
    """)
    wait_for(browser, lambda: [e for e in browser.get_log("browser") if "violates" in e["message"]])
    assert browser.title == title


def test_the_kind_menu_changes_the_numbers_to_those_of_the_kind(browser, built, runs):
    open_page(browser, built)
    for kind, shown in indices.KIND_NAMES.items():
        pick(browser, "kind", kind)
        assert text_of(browser, "summary-means").startswith(f"{shown}; above the null")
        first = browser.find_element("css selector", "#summary-means tbody tr td:nth-child(5)").text
        mean = float(indices.layer_indices(runs[2], kind)["rfc"].mean())
        assert first.startswith(f"{mean:+.3f} ["), (kind, first)
        assert shown in text_of(browser, "heads-said")


def test_a_head_shows_the_rows_behind_it(browser, built, runs):
    open_page(browser, built)
    assert not browser.find_element("id", "heads-points").is_displayed()
    first = browser.find_element("css selector", "#heads-table tbody tr")
    layer, head = (cell.text for cell in first.find_elements("css selector", "td")[:2])
    first.find_element("css selector", "button").click()
    settle(browser, {})
    assert text_of(browser, "heads-chosen").startswith(f"Layer {layer}, head {head}: normalised")
    dots = browser.find_elements("css selector", "#heads-points svg .mark-symbol path")
    assert len(dots) == len(labels_of(runs[3])[0])
    rows = browser.execute_script("return report.state")
    assert (rows["layer"], rows["head"]) == (int(layer), int(head))
    settle(browser, {"set": "original"})
    dots = browser.find_elements("css selector", "#heads-points svg .mark-symbol path")
    assert len(dots) == len(runs[1].category)


def test_the_map_is_white_at_0_and_red_where_positive(browser, built):
    open_page(browser, built)
    data = embedded(built, "heads")["data"]["runs"]["crossed|instruct"]["tests"]["normalised"]
    shown = unpack(next(iter(data.values())), np.float32).reshape(len(heads.MEASURES), -1)[0]
    size = np.abs(shown).max()
    stops = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in charts.DIVERGING]
    cells = browser.find_elements("css selector", MAP_CELLS)
    fills = [[int(x) for x in re.findall(r"\d+", cell.get_attribute("fill"))[:3]] for cell in cells]
    at = np.linspace(-size, size, len(stops))
    wanted = np.stack([np.interp(shown, at, channel) for channel in zip(*stops, strict=True)], 1)
    np.testing.assert_allclose(fills, wanted, atol=1.5)
    assert np.interp(0.0, at, np.array(stops)[:, 2]) == 255


def test_a_click_on_the_map_chooses_its_head(browser, built):
    open_page(browser, built)
    cells = browser.find_elements("css selector", MAP_CELLS)
    assert len(cells) == 5 * 3
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cells[7])
    ActionChains(browser).move_to_element_with_offset(cells[7], 9, 3).click().perform()
    settle(browser, {})
    state = browser.execute_script("return [report.state.layer, report.state.head]")
    assert state == [2, 1]  # the eighth of five layers of three heads
    assert text_of(browser, "heads-chosen").startswith("Layer 2, head 1")


def test_a_range_of_layers_filters_what_follows(browser, built):
    open_page(browser, built)
    assert "layers 0 to 4: 15 heads" in text_of(browser, "heads-said")
    low = browser.find_element("id", "menu-low")
    low.clear()
    low.send_keys("3\t")
    settle(browser, {})
    assert "layers 3 to 4: 6 heads" in text_of(browser, "heads-said")
    layers = browser.find_elements("css selector", "#heads-table tbody tr td:first-child")
    assert {cell.text for cell in layers} == {"3", "4"}
    rows = browser.find_elements("css selector", "#comparison-table tbody tr")
    assert len(rows) == 2
    browser.find_element("id", "menu-all").click()
    settle(browser, {})
    assert "15 heads" in text_of(browser, "heads-said")


def test_a_brush_over_layers_is_their_range(browser, built):
    from selenium.webdriver import ActionChains

    open_page(browser, built)
    chart = browser.find_element("css selector", "#layers-rfc svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    width = chart.size["width"]
    drag = ActionChains(browser).move_to_element_with_offset(chart, int(0.14 * width), 0)
    drag.click_and_hold().move_by_offset(int(0.33 * width), 0).release().perform()
    layers = wait_for(
        browser, lambda: (s := browser.execute_script("return report.state.layers")) != [0, 4] and s
    )
    assert layers == [3, 4]
    settle(browser, {})
    assert f"layers {layers[0]} to {layers[1]}" in text_of(browser, "heads-said")


def test_a_brush_that_ended_just_before_another_change_does_not_undo_it(browser, built):
    open_page(browser, built)
    later = """
        const done = arguments[0];
        const view = report.views.get(document.getElementById("layers-rfc"));
        view.signal("brush_x", [0, 80]).runAsync().then(() => {
          report.set({layers: [2, 3]});
          setTimeout(() => report.idle().then(() => done(report.state.layers)), 600);
        });
    """
    assert browser.execute_async_script(later) == [2, 3]


def test_tables_sort_by_their_headers_from_the_keyboard(browser, built):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, built)
    header = browser.find_element("css selector", "#comparison-table th:nth-child(4)")
    header.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "ascending"
    cells = browser.find_elements("css selector", "#comparison-table tbody tr td:nth-child(4)")
    values = [float(cell.text.split()[0]) for cell in cells]
    assert values == sorted(values)
    header.find_element("css selector", "button").send_keys(Keys.ENTER)
    cells = browser.find_elements("css selector", "#comparison-table tbody tr td:nth-child(4)")
    assert [float(cell.text.split()[0]) for cell in cells] == sorted(values, reverse=True)


def test_downloads_hold_the_numbers(browser, built, runs):
    open_page(browser, built)
    caught = """
        const done = arguments[0], make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return make.call(URL, blob); };
        document.querySelector('#heads > .numbers button').click();
    """
    lines = browser.execute_async_script(caught).strip().split("\r\n")
    assert lines[0].startswith("model,set,format,run,kind,contrast,layer,head,estimate,low,high")
    assert len(lines) == 1 + 15
    columns = dict(zip(lines[0].split(","), lines[5].split(","), strict=True))
    name, contrast = next(iter(contrasts.available_contrasts(runs[3].category).items()))
    own = role_tests.contrast_heads(runs[3], {name: contrast})[name]
    at = int(columns["layer"]), int(columns["head"])
    assert (columns["set"], columns["run"], columns["contrast"]) == ("crossed", "instruct", name)
    assert at == (1, 1) and float(columns["p_max"]) == pytest.approx(own["p_max"][at], rel=1e-4)


def test_hostile_texts_are_shown_as_texts(browser, hostile):
    open_page(browser, hostile)
    assert [e for e in browser.get_log("browser") if e["level"] != "INFO"] == []
    assert "<script>document.title='owned'" in browser.title
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0
    settle(browser, {"layer": 1, "head": 0})
    assert requests_of(browser) == []
    assert SET_NAME in browser.find_element("id", "menu-set").text
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0


def test_without_javascript_the_static_parts_are_there(built, tmp_path):
    driver = start_browser(tmp_path / "profile", scripts=False)
    try:
        driver.get(built.as_uri())
        charts = driver.find_elements("css selector", "#layers noscript svg, #layers svg.static")
        assert len([chart for chart in charts if chart.is_displayed()]) == 4
        for name in ("summary", "heads", "comparison", "method"):
            tables = driver.find_elements("css selector", f"#{name} table")
            assert any(table.is_displayed() for table in tables), name
        assert not driver.find_element("id", "menus").is_displayed()
    finally:
        driver.quit()
