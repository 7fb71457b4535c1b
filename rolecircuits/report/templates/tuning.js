"use strict";
/* A tuning study: behaviour, drift and a signal by dose, what the signal follows, all signals. */
(function () {
  const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"];
  const LEAST = 220, GAP = 105;

  /* Rows of the charts, one a checkpoint; step 0 once for each run, from which its line begins. */
  function rowsOf(data, signal, behaviour) {
    const p = data.points, change = data.changes[signal], base = p.arm.indexOf("base");
    const name = (i) => data.arms[p.arm[i]].name;
    const row = (i, of) => ({ arm: name(of), run: `${p.arm[of]} ${p.seed[of]}`, dose: p.dose[i],
      matched: i === base ? false : p.matched[i], step0: i === base, drift: Math.max(0, p.drift[i]),
      behaviour: p[behaviour][i], change: change[i],
      text: [i === base ? "step 0" : `${p.arm[i]}, seed ${p.seed[i]}, dose ${p.dose[i]}` +
        (p.matched[i] ? ", scaled to matched drift" : ""),
        `${data.behaviour[behaviour]} ${report.show(p[behaviour][i], 2)}`,
        `drift ${report.show(p.drift[i], 3)} nats`,
        `change ${report.signed(change[i], 4)}`].join("\n") });
    const rows = [], begun = new Set();
    p.arm.forEach((arm, i) => {
      if (i === base) return;
      const run = `${arm} ${p.seed[i]}`;
      if (!begun.has(run)) rows.push(row(base, i));
      begun.add(run);
      rows.push(row(i, i));
    });
    return rows;
  }

  const axis = (field, title, more = {}) =>
    Object.assign({ field, type: "quantitative", title }, more);
  const tooltip = { field: "text", type: "nominal" };
  /* Step 0 belongs to no arm. */
  const ofArm = (channel, step0) => ({ [channel]: { field: "arm", type: "nominal",
    condition: { test: "datum.step0", value: step0 } } });
  const points = Object.assign(ofArm("color", "var(--ink)"), ofArm("shape", "diamond"));
  const zero = { data: { values: [{}] }, mark: { type: "rule", opacity: 0.7 },
    encoding: { x: null, color: null, shape: null, y: { datum: 0 } } };

  /* Thin lines of runs and the thick mean of each arm. */
  function byDose(size, y) {
    const x = axis("dose", "dose (optimizer steps)", { axis: { tickMinStep: 1, grid: false } });
    return Object.assign({}, size, {
      transform: [{ filter: "!datum.matched" }],
      layer: [zero,
        { mark: { type: "line", strokeWidth: 1, opacity: 0.35 },
          encoding: { x, y, detail: { field: "run", type: "nominal" } } },
        { mark: { type: "line", strokeWidth: 2.5 },
          encoding: { x, y: Object.assign({ aggregate: "mean" }, y) } },
        { mark: { type: "point", filled: true, size: 22, opacity: 0.8 },
          encoding: { ...points, x, y, tooltip } }],
    });
  }

  /* The signal against what it may follow; scaled runs have an edge. */
  function against(size, x, y) {
    const edge = { condition: { test: "datum.matched", value: "var(--ink)" }, value: null };
    return Object.assign({}, size, {
      layer: [zero,
        { mark: { type: "point", filled: true, strokeWidth: 1.4 },
          encoding: { ...points, x, y, tooltip, stroke: edge,
            size: { condition: { test: "datum.matched || datum.step0", value: 80 }, value: 26 },
            opacity: { condition: { test: "datum.matched || datum.step0", value: 1 },
              value: 0.55 } } }],
    });
  }

  function drawCharts(element, data, signal, behaviour) {
    const row = data.signals.find((one) => one.signal === signal);
    const arms = Object.values(data.arms), names = arms.map((arm) => arm.name);
    const room = Math.max(LEAST + GAP, element.clientWidth - 20);
    const columns = Math.max(1, Math.min(3, Math.floor(room / (LEAST + GAP))));
    const size = { width: Math.min(300, Math.floor(room / columns) - GAP), height: 180 };
    const change = axis("change", row.name, { scale: { zero: true } });
    const said = axis("behaviour", data.behaviour[behaviour], { scale: { domain: [0, 1] } });
    const legend = { orient: "top", symbolOpacity: 1 };
    const r2 = (value) => (value == null ? "" : `, R2 ${value.toFixed(2)}`);
    const of = data.matched, tests = ["role_facts", "role_shuffled"].filter((name) =>
      row[`${name}_p`] != null).map((name) =>
      `p ${row[`${name}_p`].toFixed(3)} ${name.replace("_", " less ")}`);
    const matched = of.arm.map((arm, i) => ({ arm: data.arms[arm].name, change: of.values[signal][i],
      text: `${arm}, seed ${of.seed[i]}\n${report.signed(of.values[signal][i], 4)}` }))
      .filter((one) => one.change != null);
    return report.chart(element, {
      description: `${row.name} by dose, against drift and against ${data.behaviour[behaviour]}; ` +
        "the numbers are in doses.csv",
      data: { values: rowsOf(data, signal, behaviour) },
      columns, spacing: 26,
      resolve: { scale: { color: "shared", shape: "shared" } },
      concat: [
        Object.assign(byDose(size, said), { title: data.behaviour[behaviour] }),
        Object.assign(byDose(size, axis("drift", "drift (nats)")), { title: "drift" }),
        Object.assign(byDose(size, change), { title: row.name }),
        Object.assign(against(size, axis("drift", "drift (nats)", { scale: { type: "sqrt" } }),
          change), { title: `against drift${r2(row.r2_drift)}` }),
        Object.assign(against(size, said, change), { title: behaviour === "compliance"
          ? `against compliance${r2(row.r2_compliance)}` : `against ${behaviour}` }),
        Object.assign({}, size, {
          title: { text: data.at, subtitle: tests.join("; ") }, data: { values: matched },
          layer: [zero,
            { mark: { type: "tick", thickness: 3, size: 50 },
              encoding: { x: { field: "arm", type: "nominal", sort: names, title: null,
                axis: { labelAngle: 0 } }, y: Object.assign({ aggregate: "mean" }, change) } },
            { mark: { type: "point", filled: true, size: 70, opacity: 0.8 },
              encoding: { x: { field: "arm", type: "nominal", sort: names, title: null },
                y: change, tooltip } }] }),
      ].map((one) => Object.assign(one, { encoding: {
        color: { field: "arm", type: "nominal", title: null, legend,
          scale: { domain: names, range: arms.map((arm) => arm.colour) } },
        shape: { field: "arm", type: "nominal", title: null, legend,
          scale: { domain: names, range: arms.map((_, i) => SHAPES[i % SHAPES.length]) } },
      } })),
    });
  }

  function drawTable(root, data, signal) {
    const difference = (name) => (x, row) =>
      report.interval(x, row[`${name}_low`], row[`${name}_high`], 4);
    const plain = (digits) => (x) => (x == null ? "-" : x.toFixed(digits));
    const columns = [
      { id: "name", name: "signal", text: true },
      { id: "verdict", name: "verdict", text: true },
      { id: "role_facts_estimate", name: "role less facts [95 %]", show: difference("role_facts") },
      { id: "role_facts_p", name: "p", show: plain(3) },
      { id: "role_shuffled_estimate", name: "role less shuffled [95 %]",
        show: difference("role_shuffled") },
      { id: "role_shuffled_p", name: "p", show: plain(3) },
      { id: "p_max", name: "max-T p", show: plain(3) },
      { id: "r2_drift", name: "R2, drift", show: plain(2) },
      { id: "r2_compliance", name: "R2, compliance", show: plain(2) },
      { id: "rho", name: "rho", show: (x) => report.signed(x, 2) },
      { id: "icc", name: "ICC", show: plain(2) },
    ];
    report.table(root.querySelector("#tuning-table"), columns, data.signals, {
      caption: `Candidate signals ${data.at}`,
      onrow: (row) => {
        root.querySelector("#tuning-signal").value = row.signal;
        draw(root, data);
      },
      current: (row) => row.signal === signal,
    });
  }

  function draw(root, data) {
    const signal = root.querySelector("#tuning-signal").value;
    for (const row of root.querySelectorAll("#tuning-table tbody tr")) {
      const own = row.querySelector("td").textContent;
      const chosen = data.signals.find((one) => one.signal === signal).name === own;
      if (chosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    return drawCharts(root.querySelector("#tuning-charts"), data, signal,
      root.querySelector("#tuning-behaviour").value);
  }

  function start(root, data) {
    const signal = root.querySelector("#tuning-signal");
    const behaviour = root.querySelector("#tuning-behaviour");
    const option = (value, text) => report.make("option", { value }, text);
    signal.append(...data.signals.map((row) => option(row.signal, row.name)));
    signal.value = data.primary;
    behaviour.append(...Object.entries(data.behaviour).map(([id, name]) => option(id, name)));
    for (const select of [signal, behaviour]) {
      select.addEventListener("change", () => draw(root, data));
    }
    drawTable(root, data, data.primary);
  }

  const update = (root, data, state, changed) =>
    changed.has("theme") ? draw(root, data) : null;

  report.section("tuning", { start, update });
})();
