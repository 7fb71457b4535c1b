"use strict";
/* The table of prompts, and the tokens of the open one shaded by the last token's attention. */
(function () {
  const MOST_HEADS = 8, MOST_PERSONS = 6, TIP_LETTERS = 200, LEAST_FOLDED = 3;
  const unpacked = new Map(), { make, words } = report;

  const keyOf = (state) => `${state.set}|${state.side}`;

  /* A run with its attention and values unpacked, once. */
  function open(data, state) {
    const key = keyOf(state), run = data.runs[key];
    if (!run) return Promise.resolve(null);
    if (!unpacked.has(key)) unpacked.set(key, unpackRun(run));
    return unpacked.get(key);
  }

  async function unpackRun(run) {
    const offsets = [];
    let total = 0;
    for (const n of run.n_tokens) {
      offsets.push(total);
      total += n;
    }
    const layers = {};
    for (const kind of Object.keys(run.layers)) {
      layers[kind] = await report.numbers(run.layers[kind]);
    }
    const steps = run.attention
      ? inOrder(run, offsets, total, await report.unpack(run.attention.packed)) : null;
    const place = new Map();
    if (run.attention && run.attention.heads) {
      run.attention.heads.forEach(([layer, head], i) => place.set(`${layer}/${head}`, i));
    }
    return Object.assign({ offsets, total, layers, steps, place }, { run });
  }

  /* Steps of the square root of attention [row, token], from their differences in the order that
     packing.column_order describes. */
  function inOrder(run, offsets, total, packed) {
    const longest = Math.max(...run.n_tokens), tokens = [];
    run.n_tokens.forEach((n, prompt) => {
      const end = run.span[prompt][1];
      for (let i = 0; i < n; i++) {
        tokens.push({ at: offsets[prompt] + i, rank: run.rank[prompt],
          place: i < end ? i : longest + i - end });
      }
    });
    tokens.sort((a, b) => a.place - b.place || a.rank - b.rank);
    const steps = new Uint8Array(packed.length);
    for (let start = 0; start < packed.length; start += total) {
      let sum = 0;
      tokens.forEach((token, i) => {
        const more = i && tokens[i - 1].place === token.place;
        sum = ((more ? sum : 0) + packed[start + i]) & 255;
        steps[start + token.at] = sum;
      });
    }
    return steps;
  }

  /* The place of a head among those that are kept, -1 where it is not. */
  function placeOf(opened, layer, head) {
    const { run } = opened;
    if (!run.attention || !run.attention.heads) return layer * run.n_heads + head;
    return opened.place.has(`${layer}/${head}`) ? opened.place.get(`${layer}/${head}`) : -1;
  }

  /* Attention of the last token of a prompt on its tokens; head null: mean over heads. */
  function attention(opened, prompt, layer, head, kind) {
    const { run, steps, total, offsets } = opened, { levels, heads } = run.attention;
    const n = run.n_tokens[prompt], out = new Float64Array(n);
    const add = (row, weight) => {
      const start = row * total + offsets[prompt];
      for (let i = 0; i < n; i++) out[i] += weight * (steps[start + i] / levels) ** 2;
    };
    if (head != null) add(placeOf(opened, layer, head) + (heads ? run.n_layers : 0), 1);
    else if (heads) add(layer, 1);
    else for (let h = 0; h < run.n_heads; h++) add(layer * run.n_heads + h, 1 / run.n_heads);
    if (kind === "sinkfree") {
      if (run.sink_key) out[0] = 0;
      const rest = out.reduce((sum, a) => sum + a, 0);
      if (rest > 0) for (let i = 0; i < n; i++) out[i] /= rest;
    }
    return out;
  }

  function onSlot(opened, prompt, row) {
    const [start, stop] = opened.run.slot[prompt];
    let sum = start < 0 ? NaN : 0;
    for (let i = Math.max(0, start); i < stop; i++) sum += row[i];
    return sum;
  }

  function layerMean(opened, state, prompt) {
    const values = opened.layers[state.kind];
    let sum = 0, n = 0;
    for (let layer = state.layers[0]; layer <= state.layers[1]; layer++) {
      const value = values.at(prompt, layer);
      if (!Number.isNaN(value)) {
        sum += value;
        n += 1;
      }
    }
    return n ? sum / n : NaN;
  }

  /* The layer shown: the chosen one, else the middle of the range. */
  function layerOf(state, run) {
    const layer = state.layer == null ? Math.floor((state.layers[0] + state.layers[1]) / 2)
      : state.layer;
    return Math.min(layer, run.n_layers - 1);
  }

  function headOf(state, opened, layer) {
    const known = state.head != null && opened.run.attention;
    return known && placeOf(opened, layer, state.head) >= 0 ? state.head : null;
  }

  const hasHead = (state) => state.head != null && state.layer != null;

  /* Values of the chosen head by prompt, NaN where the section of heads does not hold them; of a
     crossed set those of the frame, the mean over its fillers. */
  async function headValues(opened, state) {
    const { run } = opened, known = hasHead(state) && report.headPoints;
    const points = known ? await report.headPoints(state) : null;
    if (!points) return run.id.map(() => NaN);
    const place = new Map(points.map((p) => [JSON.stringify([p.row, p.category]), p.estimate]));
    return run.id.map((id, i) => {
      const row = run.crossed ? run.frame[i] : id;
      const value = place.get(JSON.stringify([row, run.category[i]]));
      return value == null ? NaN : value;
    });
  }

  async function rowsOf(opened, state) {
    const { run } = opened, values = await headValues(opened, state);
    return run.id.map((id, i) => ({
      i, id, text: run.text[i], category: run.category[i], frame: run.frame[i],
      filler: run.filler[i], value: layerMean(opened, state, i),
      head: values[i],
      answer: run.answers ? run.answers[i] : null,
    }));
  }

  function clamped(text, id) {
    const box = make("span", { class: "clamp", dir: "auto" }, text);
    if (id != null) box.dataset.prompt = id;
    return box;
  }

  function columnsOf(state, rows) {
    const range = state.layers[0] === state.layers[1] ? `layer ${state.layers[0]}`
      : `layers ${state.layers.join(" to ")}`;
    const columns = [
      { id: "text", name: "prompt", text: true, show: (text, row) => clamped(text, row.id) },
      { id: "category", name: "category", text: true, show: words },
      { id: "frame", name: "frame", text: true },
      { id: "value", name: `entropy, ${range}`,
        show: (x) => (Number.isNaN(x) ? "-" : x.toFixed(3)) },
    ];
    if (rows.some((row) => !Number.isNaN(row.head))) {
      columns.push({ id: "head", name: `head ${state.layer}/${state.head}`,
        show: (x) => report.show(x, 3) });
    }
    if (rows.some((row) => row.answer != null)) {
      columns.push({ id: "answer", name: "answer", text: true,
        show: (text) => (text == null ? "-" : clamped(text)) });
    }
    return columns;
  }

  /* How the table is sorted now, to be kept when it is made anew. */
  function sorting(element, columns) {
    const cells = Array.from(element.querySelectorAll("th"));
    const place = cells.findIndex((cell) => cell.getAttribute("aria-sort") !== "none");
    if (place < 0 || place >= columns.length) return null;
    return [columns[place].id, cells[place].getAttribute("aria-sort")];
  }

  async function drawTable(root, opened, state) {
    const element = root.querySelector("#prompts-table");
    const find = root.querySelector("#prompts-find").value.toLowerCase();
    const only = root.querySelector("#prompts-category").value;
    const rows = (await rowsOf(opened, state)).filter((row) =>
      (!only || row.category === only)
      && (!find || `${row.text} ${row.frame} ${row.id}`.toLowerCase().includes(find)));
    const columns = columnsOf(state, rows), sort = sorting(element, columns);
    const before = element.querySelector(".wide"), top = before ? before.scrollTop : 0;
    const kind = report.page.menus.kinds.find((item) => item.id === state.kind).name;
    report.table(element, columns, rows, {
      sort, caption: `${state.set}, ${state.side}: ${rows.length} prompts; entropy is ${kind}, ` +
        "mean over heads",
      onrow: (row) => {
        report.set({ prompt: row.id });
        const reader = root.querySelector("#prompts-reader");
        reader.scrollIntoView({ block: "nearest" });
        reader.focus({ preventScroll: true });
      },
    });
    const after = element.querySelector(".wide");
    if (after) after.scrollTop = top;
    markRow(root, state);
  }

  function markRow(root, state) {
    for (const box of root.querySelectorAll("#prompts-table [data-prompt]")) {
      const row = box.closest("tr");
      if (box.dataset.prompt === state.prompt) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  /* The chosen prompt; at first one that was answered, if there is one. */
  function promptOf(run, state) {
    const chosen = run.id.indexOf(state.prompt);
    const answered = run.answers ? run.answers.findIndex((text) => text != null) : -1;
    return Math.max(0, chosen < 0 ? answered : chosen);
  }

  /* The open prompt first, then the other persons of its frame. */
  function personsOf(run, prompt) {
    if (!run.crossed) return [prompt];
    const same = run.id.map((_, i) => i).filter((i) => i !== prompt
      && run.frame[i] === run.frame[prompt] && run.filler[i] === run.filler[prompt]);
    return [prompt, ...same].slice(0, MOST_PERSONS);
  }

  function strip(opened, prompt) {
    const { run } = opened, [start, stop] = run.slot[prompt];
    return make("p", { class: "strip" }, ...piecesOf(run, prompt).map((piece) => {
      if (piece.length > 1) return make("span", { class: "token folded" },
        `${piece.length} tokens of the template`);
      const slot = piece[0] >= start && piece[0] < stop;
      return make("span", { class: slot ? "token slot" : "token", dir: "auto" },
        run.vocabulary[run.tokens[prompt][piece[0]]]);
    }));
  }

  /* The tokens of a strip: [[token], ...]; unless all are asked for, what stands before and after
     the text is one piece each, less the first token. */
  function piecesOf(run, prompt) {
    const all = Array.from(run.tokens[prompt], (_, i) => i), [start, stop] = run.span[prompt];
    const whole = document.getElementById("prompts-all").checked;
    const fold = (part) => (whole || part.length <= LEAST_FOLDED ? part.map((i) => [i]) : [part]);
    return [...fold(all.slice(0, 1)), ...fold(all.slice(1, start)),
      ...all.slice(Math.max(1, start), stop).map((i) => [i]),
      ...fold(all.slice(Math.max(1, stop)))];
  }

  function shade(box, opened, prompt, layer, head, kind) {
    const { run } = opened, row = attention(opened, prompt, layer, head, kind);
    const spans = box.querySelectorAll(".token");
    piecesOf(run, prompt).forEach((piece, k) => {
      const mass = piece.reduce((sum, i) => sum + row[i], 0);
      const text = piece.map((i) => run.vocabulary[run.tokens[prompt][i]]).join("");
      spans[k].style.setProperty("--a", Math.sqrt(Math.min(1, mass)).toFixed(3));
      spans[k].title = `${text.slice(0, TIP_LETTERS)}: ${mass.toFixed(3)}`;
    });
    const slot = onSlot(opened, prompt, row);
    box.querySelector(".mass").textContent = Number.isNaN(slot) ? ""
      : `, attention on the slot ${slot.toFixed(3)}`;
  }

  function drawReader(root, opened, state) {
    const reader = root.querySelector("#prompts-reader"), { run } = opened;
    const prompt = promptOf(run, state);
    if (!run.tokens || !run.attention) {
      reader.replaceChildren(make("p", {}, "This run holds no attention of the last token."));
      return;
    }
    const persons = personsOf(run, prompt), filler = run.filler[prompt];
    const slider = make("input", { id: "prompts-layer", type: "range", min: 0, step: 1,
      max: run.n_layers - 1 });
    const head = make("select", { id: "prompts-head" });
    const said = make("output", { for: "prompts-layer" });
    const all = make("input", { id: "prompts-all", type: "checkbox", checked: reader.whole });
    all.addEventListener("change", () => {
      reader.whole = all.checked;
      drawReader(root, opened, report.state);
      root.querySelector("#prompts-all").focus();
    });
    const heads = make("div", { class: "heads", id: "prompts-heads" });
    reader.replaceChildren(all);  // the strips ask it
    const boxes = persons.map((i) => make("div",
      { class: "person", "aria-current": i === prompt ? "true" : null },
      make("div", { class: "who" }, words(run.category[i]), make("span", { class: "mass" })),
      strip(opened, i)));
    const scale = make("span", { class: "legend", "aria-hidden": "true" },
      ...[0, 0.01, 0.1, 0.3, 1].map((mass) => {
        const box = make("span", { class: "token" }, mass);
        box.style.setProperty("--a", Math.sqrt(mass));
        return box;
      }));
    const parts = [
      make("h3", {}, run.crossed ? "Frame " : "First word ", make("bdi", {}, run.frame[prompt]),
        filler ? ", " : "", make("bdi", {}, filler)),
      make("div", { class: "controls" }, make("label", { for: "prompts-layer" }, "Layer"), slider,
        said, make("label", { for: "prompts-head" }, "Head"), head,
        make("label", {}, all, " all tokens"), " attention ", scale),
      heads, ...boxes,
    ];
    if (run.answers && run.answers[prompt] != null) {
      parts.push(make("p", {}, "Answer: ", make("bdi", {}, run.answers[prompt])));
    }
    reader.replaceChildren(...parts);
    slider.addEventListener("input", () => {
      drawShades(root, opened, Object.assign({}, report.state, { layer: slider.valueAsNumber }));
    });
    slider.addEventListener("change", () => report.set({ layer: slider.valueAsNumber }));
    head.addEventListener("change", () => report.set({
      layer: slider.valueAsNumber, head: head.value === "" ? null : Number(head.value) }));
    reader.shown = { prompt, persons, boxes };
    drawShades(root, opened, state);
  }

  function drawShades(root, opened, state) {
    const reader = root.querySelector("#prompts-reader"), { run } = opened;
    if (!reader.shown || !run.attention) return;
    const layer = layerOf(state, run), head = headOf(state, opened, layer);
    const { prompt, persons, boxes } = reader.shown;
    persons.forEach((i, k) => shade(boxes[k], opened, i, layer, head, state.kind));
    reader.querySelector("#prompts-layer").value = layer;
    reader.querySelector("output").textContent = layer;
    const select = reader.querySelector("#prompts-head");
    select.replaceChildren(make("option", { value: "" }, "mean over heads"));
    for (let h = 0; h < run.n_heads; h++) {
      if (placeOf(opened, layer, h) >= 0) select.append(make("option", { value: h }, `head ${h}`));
    }
    select.value = head == null ? "" : head;
    drawHeads(reader, opened, state, prompt);
  }

  /* The heads of the chosen layers that attend the most to the slot of the open prompt. */
  function drawHeads(reader, opened, state, prompt) {
    const { run } = opened, found = [];
    const place = reader.querySelector("#prompts-heads");
    place.hidden = run.slot[prompt][0] < 0;
    if (place.hidden) return;
    for (let layer = state.layers[0]; layer <= state.layers[1]; layer++) {
      for (let head = 0; head < run.n_heads; head++) {
        if (placeOf(opened, layer, head) < 0) continue;
        const row = attention(opened, prompt, layer, head, state.kind);
        found.push({ layer, head, mass: onSlot(opened, prompt, row) });
      }
    }
    found.sort((a, b) => b.mass - a.mass);
    place.replaceChildren("Most attention on the slot: ", ...found.slice(0, MOST_HEADS).map(
      ({ layer, head, mass }) => {
        const button = make("button", { type: "button",
          "aria-pressed": String(state.layer === layer && state.head === head),
          "aria-label": `layer ${layer} head ${head}, attention ${mass.toFixed(2)}` },
        `${layer}/${head}: ${mass.toFixed(2)}`);
        button.addEventListener("click", () => report.set({ layer, head }));
        return button;
      }));
  }

  function fillCategories(root, run) {
    const select = root.querySelector("#prompts-category"), before = select.value;
    const names = Array.from(new Set(run.category));
    select.replaceChildren(make("option", { value: "" }, "all"),
      ...names.map((name) => make("option", { value: name }, words(name))));
    select.value = names.includes(before) ? before : "";
  }

  async function start(root, data) {
    const redraw = async () => {
      const opened = await open(data, report.state);
      if (opened) drawTable(root, opened, report.state);
    };
    root.querySelector("#prompts-find").addEventListener("input", redraw);
    root.querySelector("#prompts-category").addEventListener("change", redraw);
    const place = root.querySelector(":scope > .numbers");
    report.link(place, "prompts.csv", async () => {
      const opened = await open(data, report.state), { set, kind, layers } = report.state;
      return (await rowsOf(opened, report.state)).map((row) => Object.assign({}, opened.run.facts, {
        set, id: row.id, category: row.category, frame: row.frame, filler: row.filler,
        text: row.text, kind, first_layer: layers[0], last_layer: layers[1],
        entropy_estimate: row.value,
        head: hasHead(report.state) ? `${report.state.layer}/${report.state.head}` : "",
        head_entropy_estimate: row.head, answer: row.answer }));
    });
    report.link(place, "prompt_attention.csv", async () => {
      const opened = await open(data, report.state), { run } = opened, state = report.state;
      const layer = layerOf(state, run), head = headOf(state, opened, layer);
      const prompt = promptOf(run, state);
      if (!run.attention) return [];
      return personsOf(run, prompt).flatMap((i) => {
        const row = attention(opened, i, layer, head, state.kind);
        return Array.from(row, (mass, token) => Object.assign({}, run.facts, {
          id: run.id[i], category: run.category[i], layer, head: head == null ? "mean" : head,
          sink: state.kind === "sinkfree" ? "left out" : "kept", token,
          text: run.vocabulary[run.tokens[i][token]], attention_estimate: mass }));
      });
    });
  }

  async function update(root, data, state, changed) {
    const opened = await open(data, state), any = (...names) => names.some((n) => changed.has(n));
    if (!opened) return;
    if (any("set", "side")) fillCategories(root, opened.run);
    if (any("set", "side", "kind", "layers", "layer", "head")) await drawTable(root, opened, state);
    if (any("set", "side", "prompt")) {
      markRow(root, state);
      drawReader(root, opened, state);
    } else if (any("kind", "layers", "layer", "head")) drawShades(root, opened, state);
  }

  report.section("prompts", { start, update });
})();
