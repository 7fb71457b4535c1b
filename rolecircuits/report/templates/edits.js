"use strict";
/* Each edited head beside all heads of its layer. */
(function () {
  const words = report.words, UNSIGNED = ["kl"];
  const COLOURS = { rfc_change: "var(--rfc)", rsi_change: "var(--rsi)" };
  const HEADS = "other heads of the layer", EDITED = "edited head";

  const by = (data, category) => data.rows.map((row, place) => Object.assign({ place }, row))
    .filter((row) => row.category === category);

  function show(row, metric) {
    if (!UNSIGNED.includes(metric)) {
      return report.interval(row[metric], row[`${metric}_low`], row[`${metric}_high`]);
    }
    const plain = (x) => x.toFixed(3), low = row[`${metric}_low`];
    const value = row[metric] == null ? "-" : plain(row[metric]);
    return low == null ? value : `${value} [${plain(low)}, ${plain(row[`${metric}_high`])}]`;
  }

  const rank = (row, metric) => row[`${metric}_rank`] == null ? "-"
    : `${row[`${metric}_rank`]} of ${row.pool}`;

  const headText = (row) => row.layer == null || row.type !== "head" ? row.intervention
    : `head ${row.layer}/${row.head}`;

  function drawChart(element, data, metric, category) {
    const candidates = by(data, category).filter((row) => row.role === "candidate");
    const values = candidates.flatMap((row) => [
      ...row.pool_rows.map((place) => data.rows[place]).map((other) => ({ edit: row.name,
        what: HEADS, value: other[metric], text: headText(other),
        tip: `${headText(other)}: ${show(other, metric)}` })),
      { edit: row.name, what: EDITED, value: row[metric], low: row[`${metric}_low`],
        high: row[`${metric}_high`], text: headText(row),
        tip: `${headText(row)}: ${show(row, metric)}\nrank ${rank(row, metric)}` },
    ]).filter((row) => row.value != null);
    const y = { field: "edit", type: "nominal", sort: null, title: null,
      axis: { labelLimit: 260, grid: true, gridDash: [2, 3] } };
    const x = { field: "value", type: "quantitative", title: data.metrics[metric],
      scale: { zero: true } };
    const tooltip = { field: "tip", type: "nominal" };
    const of = (what) => ({ filter: { field: "what", equal: what } });
    const color = COLOURS[metric] || "var(--accent)";
    return report.chart(element, {
      description: `${data.metrics[metric]} of each edited head beside the other heads of its layer`,
      width: Math.max(180, Math.min(640, element.clientWidth - 240)), height: { step: 34 },
      data: { values },
      layer: [
        { mark: { type: "rule", strokeDash: [3, 3], opacity: 0.6 },
          encoding: { x: { datum: 0, type: "quantitative" } } },
        { transform: [of(HEADS)], mark: { type: "tick", thickness: 2, size: 18, color: "var(--control)" },
          encoding: { x, y, tooltip } },
        { transform: [of(EDITED)], mark: { type: "rule", color, strokeWidth: 2 },
          encoding: { x: { field: "low", type: "quantitative", title: data.metrics[metric] }, y,
            x2: { field: "high" } } },
        { transform: [of(EDITED)], mark: { type: "point", filled: true, size: 90,
          color, opacity: 1 }, encoding: { x, y, tooltip } },
      ],
    });
  }

  function drawTable(element, data, metric, category) {
    const rows = by(data, category).filter((row) => row.role === "candidate");
    const isHead = (row) => row.type === "head" && row.layer != null && /^\d+$/.test(row.head);
    const columns = [
      { id: "name", name: "edit", text: true },
      { id: "n", name: "prompts" },
      { id: metric, name: data.metrics[metric], show: (x, row) => show(row, metric) },
      { id: `${metric}_rank`, name: "rank in its layer", show: (x, row) => rank(row, metric) },
      { id: `${metric}_control`, name: "mean of the others",
        show: (x) => (x == null ? "-" : UNSIGNED.includes(metric) ? x.toFixed(3)
          : report.signed(x)) },
      { id: `${metric}_q`, name: "q (differs from that mean)", show: report.chance },
    ];
    report.table(element, columns, rows, {
      caption: `${data.metrics[metric]}, ${category === "all" ? "all prompts" : words(category)}`,
      onrow: (row) => {
        if (isHead(row)) report.set({ layer: Number(row.layer), head: Number(row.head) });
      },
      current: (row) => isHead(row) && Number(row.layer) === report.state.layer
        && Number(row.head) === report.state.head,
    });
  }

  function draw(root, data) {
    const metric = root.querySelector("#edits-metric").value;
    const category = root.querySelector("#edits-category").value;
    drawTable(root.querySelector("#edits-table"), data, metric, category);
    return drawChart(root.querySelector("#edits-chart"), data, metric, category);
  }

  function start(root, data) {
    if (!data.rows) return;
    const metric = root.querySelector("#edits-metric");
    const category = root.querySelector("#edits-category");
    const option = (value, text) => report.make("option", { value }, text);
    metric.append(...Object.entries(data.metrics).map(([id, name]) => option(id, name)));
    const names = Array.from(new Set(data.rows.map((row) => row.category)));
    names.sort((a, b) => (b === "all") - (a === "all"));
    category.append(...names.map((name) => option(name, name === "all" ? "all" : words(name))));
    for (const select of [metric, category]) {
      select.addEventListener("change", () => draw(root, data));
    }
    report.link(root.querySelector(":scope > .numbers"), "effects.csv", () => data.rows.map((row) => {
      const out = Object.assign({}, data.facts, { edit: row.intervention });
      for (const name of data.labels) out[name] = row[name];
      for (const id of Object.keys(data.metrics)) {
        data.parts.forEach((part, i) => { out[`${id}_${data.part_names[i]}`] = row[id + part]; });
      }
      return out;
    }));
  }

  function update(root, data, state, changed) {
    const watched = ["layer", "head", "theme"];
    return data.rows && watched.some((name) => changed.has(name)) ? draw(root, data) : null;
  }

  report.section("edits", { start, update });
})();
