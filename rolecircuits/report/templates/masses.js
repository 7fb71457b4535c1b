"use strict";
/* Shares of the last token's attention by part of the text, category and layer. */
(function () {
  const UNIFORM = "uniform attention", WIDEST = 190, LEAST = 120;
  const unpacked = new Map(), words = report.words;
  let wanted = null;  // the part that was chosen last

  function open(data, state) {
    const key = `${state.set}|${state.side}`, run = data.runs[key];
    if (!run) return Promise.resolve(null);
    if (!unpacked.has(key)) {
      const names = ["layers", "uniform", "heads"];
      unpacked.set(key, Promise.all(names.map((name) => report.numbers(run[name]))).then(
        (found) => ({ run, layers: found[0], uniform: found[1], heads: found[2] })));
    }
    return unpacked.get(key);
  }

  const oneHead = (state) => state.head != null && state.layer != null;

  /* Rows {layer, category, part, estimate, uniform} of the chosen layers, or of the chosen head. */
  function rowsOf(opened, state) {
    const { run } = opened, rows = [], head = oneHead(state) ? state.head : null;
    const [low, high] = head == null ? state.layers : [state.layer, state.layer];
    for (let layer = low; layer <= high; layer++) {
      run.categories.forEach((category, c) => run.parts.forEach((part, p) => rows.push({
        layer, head: head == null ? "mean" : head, category, part,
        estimate: head == null ? opened.layers.at(c, layer, p) : opened.heads.at(c, layer, head, p),
        uniform: opened.uniform.at(c, layer, p) })));
    }
    return rows;
  }

  /* Rows of every head of a layer. */
  function layerHeads(opened, layer) {
    const n = opened.heads.shape[2], heads = Array.from({ length: n }, (_, head) => head);
    return heads.flatMap((head) => rowsOf(opened, { layer, head }));
  }

  /* Mean over the layers of rows: {part: {category: number, uniform: number}}. */
  function meansOf(opened, rows) {
    return opened.run.parts.map((part) => {
      const own = rows.filter((row) => row.part === part), out = { part };
      for (const category of opened.run.categories) {
        const cells = own.filter((row) => row.category === category);
        out[category] = cells.reduce((sum, row) => sum + row.estimate, 0) / cells.length;
      }
      out.uniform = own.reduce((sum, row) => sum + row.uniform, 0) / own.length;
      return out;
    });
  }

  function drawShares(element, data, opened, rows, state) {
    const { run } = opened, n = run.categories.length;
    const values = rows.map((row) => ({ layer: row.layer, part: data.names[row.part],
      order: run.parts.indexOf(row.part), panel: words(row.category),
      share: row.estimate, tip: tipOf(data, row) }));
    const flat = new Map();
    for (const row of rows) {
      const key = `${row.layer}/${row.part}`;
      if (!flat.has(key)) flat.set(key, Object.assign({}, row, { estimate: 0 }));
      flat.get(key).estimate += row.uniform / n;
    }
    for (const row of flat.values()) {
      values.push({ layer: row.layer, part: data.names[row.part], panel: UNIFORM,
        order: run.parts.indexOf(row.part), share: row.estimate,
        tip: `uniform attention, layer ${row.layer}\n${data.names[row.part]}: ` +
          row.estimate.toFixed(3) });
    }
    const panels = [...run.categories.map(words), UNIFORM];
    const room = Math.max(200, element.clientWidth - 60);
    const columns = Math.max(1, Math.min(panels.length, Math.floor(room / (LEAST + 40))));
    const names = run.parts.map((part) => data.names[part]);
    return report.chart(element, {
      description: "Stacked shares of the last token's attention by layer, a panel a category, " +
        "the last for uniform attention",
      data: { values },
      facet: { field: "panel", type: "nominal", sort: panels, title: null },
      columns,
      spec: {
        width: Math.min(WIDEST, Math.floor(room / columns) - 40), height: 150,
        mark: { type: "bar" },
        encoding: {
          x: { field: "layer", type: "ordinal", scale: { paddingInner: 0.05, paddingOuter: 0 },
            axis: { labelOverlap: "greedy", labelSeparation: 6, labelAngle: 0 } },
          y: { field: "share", type: "quantitative", stack: true, title: "share of attention",
            scale: { domain: [0, 1] } },
          color: { field: "part", type: "nominal", title: null,
            scale: { domain: names, range: run.parts.map((part) => `var(--part-${part})`) },
            legend: { orient: "bottom", columns: columns > 2 ? 4 : 1, labelLimit: 240 } },
          order: { field: "order", type: "quantitative" },
          tooltip: { field: "tip", type: "nominal" },
        },
      },
    });
  }

  const tipOf = (data, row) => `${words(row.category)}, layer ${row.layer}` +
    `${row.head === "mean" ? "" : ` head ${row.head}`}\n${data.names[row.part]}: ` +
    `${row.estimate.toFixed(3)} (uniform ${row.uniform.toFixed(3)})`;

  /* Shares of one part: by layer, or by head of the layer of the chosen head. */
  function drawPart(element, data, opened, rows, state) {
    const part = document.getElementById("masses-part").value, { run } = opened;
    const one = oneHead(state), by = one ? "head" : "layer";
    const own = (one ? layerHeads(opened, state.layer) : rows).filter((row) => row.part === part);
    const chosen = run.contrasts[state.contrast] || run.categories;
    const domain = [...run.categories.map(words), "uniform"];
    const line = own.map((row) => ({ at: row[by], share: row.estimate,
      line: words(row.category), faint: chosen.includes(row.category) ? 1 : 0.25,
      tip: tipOf(data, row) }));
    for (const place of Array.from(new Set(own.map((row) => row[by])))) {
      const at = own.filter((row) => row[by] === place);
      line.push({ at: place, line: "uniform", faint: 1, tip: `uniform attention, ${by} ${place}`,
        share: at.reduce((sum, row) => sum + row.uniform, 0) / at.length });
    }
    const where = one ? `by head of layer ${state.layer}` : "by layer";
    return report.chart(element, {
      title: one ? `Heads of layer ${state.layer}, head ${state.head} large` : "",
      description: `Share of the last token's attention on ${data.names[part]} ${where}, ` +
        "categories beside uniform attention",
      width: Math.max(200, Math.min(760, element.clientWidth - 190)), height: 220,
      data: { values: line },
      mark: one ? { type: "point", filled: true } : { type: "line", point: { size: 24 } },
      encoding: {
        x: { field: "at", type: "quantitative", title: by, axis: { tickMinStep: 1, format: "d" },
          scale: { nice: false, zero: false, padding: 8 } },
        y: { field: "share", type: "quantitative", title: `on ${data.names[part]}` },
        color: { field: "line", type: "nominal", title: null,
          legend: { symbolOpacity: 1 }, scale: { domain,
          range: [...run.categories.map((name) => report.look(name).colour), "var(--null)"] } },
        ...(one ? {} : { strokeDash: { field: "line", type: "nominal", title: null,
          scale: { domain, range: [...run.categories.map(() => [1, 0]), [5, 4]] } } }),
        ...(one ? { size: { condition: { test: `datum.at === ${state.head}`, value: 150 },
          value: 45 } } : {}),
        opacity: { field: "faint", type: "quantitative", scale: null, legend: null },
        tooltip: { field: "tip", type: "nominal" },
      },
    });
  }

  function drawTable(element, data, opened, rows, state) {
    const share = (x) => x.toFixed(3), { run } = opened;
    const columns = [{ id: "part", name: "part of the text", text: true,
      show: (part) => data.names[part] }];
    for (const category of run.categories) {
      columns.push({ id: category, name: words(category), show: share });
    }
    columns.push({ id: "uniform", name: "uniform", show: share });
    const where = oneHead(state) ? `layer ${state.layer} head ${state.head}`
      : `mean over heads and layers ${state.layers.join(" to ")}`;
    report.table(element, columns, meansOf(opened, rows), {
      caption: `${state.set}, ${state.side}: share of the last token's attention, ${where}` });
  }

  function fillParts(data, run) {
    const select = document.getElementById("masses-part");
    select.replaceChildren(...run.parts.map((part) =>
      report.make("option", { value: part }, data.names[part])));
    const usual = run.parts.includes("slot") ? "slot" : "user_text";
    select.value = run.parts.includes(wanted) ? wanted : usual;
  }

  async function draw(root, data, state) {
    const opened = await open(data, state);
    root.querySelector(".live").hidden = !opened;
    if (!opened) return;
    fillParts(data, opened.run);
    const rows = rowsOf(opened, state), at = (id) => root.querySelector(`#masses-${id}`);
    drawTable(at("table"), data, opened, rows, state);
    await drawShares(at("shares"), data, opened, rows, state);
    await drawPart(at("part-chart"), data, opened, rows, state);
  }

  function start(root, data) {
    root.querySelector("#masses-part").addEventListener("change", (event) => {
      wanted = event.target.value;
      draw(root, data, report.state);
    });
    report.link(root.querySelector(":scope > .numbers"), "masses.csv", async () => {
      const opened = await open(data, report.state);
      return opened ? rowsOf(opened, report.state).map(({ uniform, ...row }) =>
        Object.assign({}, opened.run.facts, row, { null: uniform })) : [];
    });
  }

  function update(root, data, state, changed) {
    const watched = ["set", "side", "contrast", "layers", "layer", "head", "theme"];
    return watched.some((name) => changed.has(name)) ? draw(root, data, state) : null;
  }

  report.section("masses", { start, update });
})();
