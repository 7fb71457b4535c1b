"use strict";
/* Conversations turn by turn: drift, the text with its values, layers, RFC and RSI. */
(function () {
  const KIND_NAMES = { normalised: "normalised entropy", sinkfree: "sink-free entropy" };
  const make = report.make, words = report.words;
  let opening = null;

  function open(data) {
    if (!opening) opening = unpack(data.turns);
    return opening;
  }

  async function unpack(turns) {
    const layers = {}, heads = {};
    for (const kind of Object.keys(turns.layers)) {
      layers[kind] = await report.numbers(turns.layers[kind]);
      if (turns.heads) heads[kind] = await report.numbers(turns.heads[kind]);
    }
    const shares = turns.shares ? await report.numbers(turns.shares) : null;
    const uniform = turns.shares ? await report.numbers(turns.uniform) : null;
    return { layers, heads, shares, uniform, n_layers: layers.normalised.shape[1] };
  }

  const kindOf = (state) => (state.kind in KIND_NAMES ? state.kind : "normalised");

  /* The chosen layers as far as the documents' model has them. */
  function rangeOf(opened, state) {
    const last = opened.n_layers - 1, [low, high] = state.layers || [0, last];
    return [Math.min(low, last), Math.min(high, last)];
  }

  /* Whether the values are those of the chosen head. */
  function showsHead(opened, state) {
    const heads = opened.heads.normalised;
    return Boolean(state.layer != null && state.head != null && heads
      && state.layer < heads.shape[1] && state.head < heads.shape[2]);
  }

  const whose = (opened, state) => (showsHead(opened, state)
    ? `layer ${state.layer} head ${state.head}`
    : `mean over heads, layers ${rangeOf(opened, state).join(" to ")}`);

  function valueOf(opened, state, kind, turn) {
    const heads = opened.heads[kind];
    if (showsHead(opened, state)) return heads.at(turn, state.layer, state.head);
    const [low, high] = rangeOf(opened, state);
    let sum = 0, n = 0;
    for (let layer = low; layer <= high; layer++) {
      const value = opened.layers[kind].at(turn, layer);
      if (!Number.isNaN(value)) {
        sum += value;
        n += 1;
      }
    }
    return n ? sum / n : NaN;
  }

  /* {NAME, NAME_null: number} of a turn: attention on each text beside uniform attention, mean over
     heads and the chosen layers; NaN where it is unknown. */
  function sharesOf(opened, state, names, turn) {
    const [low, high] = rangeOf(opened, state), found = {};
    names.forEach((name, s) => [["", opened.shares], ["_null", opened.uniform]].forEach(
      ([end, numbers]) => {
        let sum = 0;
        for (let layer = low; layer <= high; layer++) {
          sum += numbers ? numbers.at(turn, layer, s) : NaN;
        }
        found[name + end] = sum / (high - low + 1);
      }));
    return found;
  }

  /* Rows of all turns: {document, category, turn, role, tokens, entropy, sink_mass, text}. */
  function rowsOf(opened, data, state) {
    const { turns, documents } = data, seen = new Map();
    const names = Object.keys(data.shares);
    return turns.document.map((d, i) => {
      const turn = seen.get(d) || 0, [start, stop] = turns.span[i];
      seen.set(d, turn + 1);
      return { i, d, document: documents[d].id, category: documents[d].category, turn,
        role: turns.role[i], tokens: stop - start,
        entropy: valueOf(opened, state, kindOf(state), i),
        sink_mass: valueOf(opened, state, "sink_mass", i),
        ...sharesOf(opened, state, names, i),
        text: turns.text ? turns.text[i] : null };
    });
  }

  function drawDrift(element, rows, state, chosen) {
    const plain = (x) => (Number.isNaN(x) ? "-" : x.toFixed(3));
    const names = Array.from(new Set(rows.map((row) => row.category)));
    const look = (name) => (name ? report.look(name) : { name: "no category", colour: "var(--null)" });
    const values = rows.map((row) => ({ turn: row.turn, document: row.document,
      category: look(row.category).name, role: row.role, weight: row.d === chosen ? 1 : 0.3,
      size: row.d === chosen ? 2.5 : 1,
      entropy: Number.isNaN(row.entropy) ? null : row.entropy,
      sink: Number.isNaN(row.sink_mass) ? null : row.sink_mass,
      tip: `${row.document}, turn ${row.turn}, ${row.role}, ${row.tokens} tokens\n` +
        `entropy ${plain(row.entropy)}, sink mass ${plain(row.sink_mass)}` }));
    const direct = (field) => ({ field, type: "quantitative", scale: null, legend: null });
    const panel = (field, title) => ({
      width: Math.max(180, Math.min(420, element.clientWidth - 220)), height: 220,
      layer: [{ mark: { type: "line" }, encoding: { strokeWidth: direct("size") } },
        { mark: { type: "point", filled: true, size: 50 },
          encoding: { shape: { field: "role", type: "nominal", title: "role",
            legend: { symbolFillColor: "var(--control)", symbolStrokeColor: "var(--control)" } },
            tooltip: { field: "tip", type: "nominal" } } }],
      encoding: {
        x: { field: "turn", type: "quantitative", axis: { tickMinStep: 1, format: "d" } },
        y: { field, type: "quantitative", title, scale: { zero: false } },
        detail: { field: "document", type: "nominal" },
        opacity: direct("weight"),
        color: { field: "category", type: "nominal", title: "category",
          legend: { symbolOpacity: 1 }, scale: { domain: names.map((name) => look(name).name),
            range: names.map((name) => look(name).colour) } },
      },
    });
    const side = element.clientWidth > 900;
    return report.chart(element, {
      description: "Entropy and sink mass of each conversation by turn; the chosen one is strong",
      data: { values },
      [side ? "hconcat" : "vconcat"]: [panel("entropy", KIND_NAMES[kindOf(state)]),
        panel("sink", "sink mass")],
    });
  }

  function bar(value, most) {
    const inner = make("span"), box = make("span", { class: "bar" }, inner);
    inner.style.setProperty("--w", Number.isNaN(value) ? 0 : Math.min(1, value / most));
    return box;
  }

  /* Both values lie in [0, 1]: a full bar is 1. */
  function drawTurns(root, rows, state, chosen) {
    const cell = (name, value) => make("div", {},
      `${name} ${Number.isNaN(value) ? "-" : value.toFixed(3)}`, bar(value, 1));
    root.querySelector("#conversations-turns").replaceChildren(
      ...rows.filter((row) => row.d === chosen).map((row) => make("li", { class: "turn" },
        make("div", {}, make("strong", {}, row.role), ` ${row.tokens} tokens`),
        cell("entropy", row.entropy), cell("sink", row.sink_mass),
        make("div", { class: "said", dir: "auto" }, row.text == null ? "" : row.text))));
  }

  function drawLayers(element, opened, rows, state, chosen) {
    const kind = kindOf(state), [low, high] = rangeOf(opened, state), values = [];
    for (const row of rows.filter((own) => own.d === chosen)) {
      for (let layer = low; layer <= high; layer++) {
        const value = opened.layers[kind].at(row.i, layer);
        if (Number.isNaN(value)) continue;
        values.push({ layer, turn: `${row.turn} ${row.role}`, value,
          tip: `turn ${row.turn}, ${row.role}, layer ${layer}: ${value.toFixed(3)}` });
      }
    }
    const turns = Array.from(new Set(values.map((row) => row.turn)));
    return report.chart(element, {
      description: `${KIND_NAMES[kind]} of each turn of the chosen document by layer`,
      width: Math.max(180, Math.min(760, element.clientWidth - 240)),
      height: { step: 18 }, data: { values }, mark: { type: "rect" },
      encoding: {
        x: { field: "layer", type: "ordinal", axis: { labelOverlap: true, labelAngle: 0 } },
        y: { field: "turn", type: "nominal", sort: turns, title: null },
        color: { field: "value", type: "quantitative", title: [KIND_NAMES[kind], "mean over heads"],
          scale: { scheme: "viridis" } },
        tooltip: { field: "tip", type: "nominal" },
      },
    });
  }

  /* A panel a text: the chosen document's turns, measured and uniform. */
  function drawShares(element, data, rows, chosen) {
    const own = rows.filter((row) => row.d === chosen && !Number.isNaN(row.system_text));
    const values = Object.keys(data.shares).flatMap((name) => own.map((row) => ({
      of: name, turn: row.turn, role: row.role, share: row[name], uniform: row[`${name}_null`],
      tip: `turn ${row.turn}, ${row.role}, ${row.tokens} tokens\non ${data.shares[name]}: `
        + `${row[name].toFixed(3)} (uniform ${row[`${name}_null`].toFixed(3)})` })));
    const width = Math.max(150, Math.min(300, (element.clientWidth - 320) / 3));
    const x = { field: "turn", type: "quantitative", axis: { tickMinStep: 1, format: "d" } };
    const panel = (name) => ({
      width, height: 180, title: `on ${data.shares[name]}`,
      transform: [{ filter: `datum.of === '${name}'` }],
      layer: [
        { mark: { type: "line", strokeDash: [4, 3], color: "var(--null)" },
          encoding: { x, y: { field: "uniform", type: "quantitative" } } },
        { mark: { type: "line", color: "var(--ink)" },
          encoding: { x, detail: { field: "role", type: "nominal" },
            y: { field: "share", type: "quantitative", title: "share of attention" } } },
        { mark: { type: "point", filled: true, size: 50, color: "var(--ink)" },
          encoding: { x, y: { field: "share", type: "quantitative" },
            shape: { field: "role", type: "nominal", title: "role",
              legend: { symbolFillColor: "var(--ink)", symbolStrokeColor: "var(--ink)" } },
            tooltip: { field: "tip", type: "nominal" } } },
      ],
    });
    const side = element.clientWidth > 760;
    return report.chart(element, {
      description: "Share of each turn's attention on the system's, the user's and the model's text "
        + "beside uniform attention",
      data: { values }, [side ? "hconcat" : "vconcat"]: Object.keys(data.shares).map(panel),
    });
  }

  function drawIndices(element, opened, data, state) {
    const found = data.indices[kindOf(state)], [low, high] = rangeOf(opened, state), values = [];
    for (const index of Object.keys(found)) {
      for (let layer = low; layer <= high; layer++) {
        const [value, a, b] = ["estimate", "low", "high"].map((name) => found[index][name][layer]);
        if (value == null) continue;
        values.push({ layer, index: index.toUpperCase(), value, low: a, high: b,
          tip: `${index.toUpperCase()}, layer ${layer}: ${report.interval(value, a, b)}` });
      }
    }
    const x = { field: "layer", type: "quantitative", axis: { tickMinStep: 1, format: "d" },
      scale: { nice: false, zero: false, padding: 8 } };
    const color = { field: "index", type: "nominal", title: null, legend: { symbolOpacity: 1 },
      scale: { domain: ["RFC", "RSI"], range: ["var(--rfc)", "var(--rsi)"] } };
    return report.chart(element, {
      description: "RFC and RSI over documents by layer, positive: self-referent is the more focused",
      width: Math.max(180, Math.min(760, element.clientWidth - 160)), height: 220,
      data: { values },
      layer: [
        { mark: { type: "rule", strokeDash: [3, 3], opacity: 0.6 },
          encoding: { y: { datum: 0, type: "quantitative" } } },
        { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "area", opacity: 0.2 },
          encoding: { x, color, y: { field: "low", type: "quantitative" },
            y2: { field: "high" } } },
        { mark: { type: "line", point: { size: 24 } }, encoding: { x, color,
          y: { field: "value", type: "quantitative", title: "index (null 0)" },
          tooltip: { field: "tip", type: "nominal" } } },
      ],
    });
  }

  /* A row a document; drifts as document_stats gives them. */
  function drawTable(root, data, state, chosen, choose) {
    const kind = kindOf(state), sign = (v) => report.signed(v);
    const drifts = [kind, "sink_mass"].flatMap((of) => data.roles.map((role) => (
      { id: `${role}_${of}_drift`, name: `${data.drifts[of]}, ${role}`, show: sign })));
    const rows = data.documents.map((document, d) => Object.assign({ d }, document));
    report.table(root.querySelector("#conversations-table"), [
      { id: "id", name: "document", text: true },
      { id: "category", name: "category", text: true, show: (v) => (v ? report.look(v).name : "-") },
      { id: "turns", name: "turns" }, { id: "tokens", name: "tokens" },
      { id: kind, name: KIND_NAMES[kind], show: (v) => (v == null ? "-" : v.toFixed(3)) },
      ...drifts,
    ], rows, { caption: "Every document, mean over all layers and heads; gain: last third of the "
      + "turns of a role against its first third",
    onrow: (row) => choose(row.d), current: (row) => row.d === chosen });
  }

  async function draw(root, data, state) {
    const opened = await open(data), rows = rowsOf(opened, data, state);
    const select = root.querySelector("#conversations-document"), chosen = Number(select.value);
    const at = (id) => root.querySelector(`#conversations-${id}`);
    drawTurns(root, rows, state, chosen);
    const of = whose(opened, state);
    at("shown").textContent = `Turn by turn: ${KIND_NAMES[kindOf(state)]} and sink mass, ${of}`;
    at("layers-title").textContent = `${data.documents[chosen].id}, every layer: `
      + `${KIND_NAMES[kindOf(state)]}, mean over heads`;
    drawTable(root, data, state, chosen, (d) => {
      select.value = d;
      draw(root, data, report.state);
      select.focus();
    });
    await drawDrift(at("drift"), rows, state, chosen);
    await drawLayers(at("layers"), opened, rows, state, chosen);
    if (at("shares")) {
      const [low, high] = rangeOf(opened, state);
      at("shares-title").textContent = `Where attention goes: ${data.documents[chosen].id}, mean `
        + `over heads, layers ${low} to ${high}`;
      await drawShares(at("shares"), data, rows, chosen);
    }
    if (at("indices")) await drawIndices(at("indices"), opened, data, state);
  }

  function start(root, data) {
    const select = root.querySelector("#conversations-document");
    select.append(...data.documents.map((document, d) =>
      make("option", { value: d }, document.id)));
    select.addEventListener("change", () => draw(root, data, report.state));
    report.link(root.querySelector(":scope > .numbers"), "turns.csv", async () => {
      const opened = await open(data), { state } = report, [low, high] = rangeOf(opened, state);
      return rowsOf(opened, data, state).map((row) => Object.assign({}, data.facts, {
        id: row.document, category: row.category, turn: row.turn, role: row.role,
        tokens: row.tokens, kind: kindOf(state), first_layer: low, last_layer: high,
        head: state.head != null && state.layer != null ? `${state.layer}/${state.head}` : "mean",
        entropy_estimate: row.entropy, sink_mass_estimate: row.sink_mass,
        ...Object.fromEntries(Object.keys(data.shares).flatMap((name) => [
          [`${name}_estimate`, row[name]], [`${name}_null`, row[`${name}_null`]]])) }));
    });
  }

  function update(root, data, state, changed) {
    const watched = ["kind", "layers", "layer", "head", "theme"];
    return watched.some((name) => changed.has(name)) ? draw(root, data, state) : null;
  }

  report.section("conversations", { start, update });
})();
