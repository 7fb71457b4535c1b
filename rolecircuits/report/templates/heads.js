"use strict";
/* The map of heads: a quantity for every head of the chosen layers; one head, chosen on the map, in
   the table or by number, shows the rows behind it. */
(function () {
  const SHOWN = 40;  // rows of the table of strongest heads
  const QUANTITIES = {
    estimate: "difference in focus", g: "Hedges g of that difference",
    slot: "attention on the slot minus uniform", kl: "KL of the next token without the head (nats)",
  };
  const cache = new Map();

  function floats(key, packed) {
    if (!cache.has(key)) {
      cache.set(key, report.unpack(packed).then((bytes) => new Float32Array(bytes.buffer)));
    }
    return cache.get(key);
  }

  /* Every head of the chosen run as a row, undefined numbers as null. */
  async function headRows(data, state) {
    const key = `${state.set}|${state.side}`, run = data.runs[key];
    const name = [key, state.kind, state.contrast].join("|");
    const packed = run.tests[state.kind][state.contrast];
    const tests = packed ? await floats(name, packed) : null;
    const slot = run.slot ? await floats(`${key}|slot`, run.slot) : null;
    const kl = run.kl ? await floats(`${key}|kl`, run.kl.packed) : null;
    const [layers, heads] = run.shape, rows = [], n = layers * heads;
    const plain = (x) => (x === undefined || Number.isNaN(x) ? null : x);
    for (let at = 0; at < n; at++) {
      const row = { layer: Math.floor(at / heads), head: at % heads };
      data.measures.forEach((measure, i) => { row[measure] = tests ? plain(tests[i * n + at]) : null; });
      row.slot = slot ? plain(slot[at]) : null;
      row.kl = kl ? plain(kl[at]) : null;
      rows.push(row);
    }
    return rows;
  }

  async function headPoints(data, state, layer, head) {
    const key = `${state.set}|${state.side}`, run = data.runs[key], points = run.points[state.kind];
    if (!points) return null;
    const at = layer * run.shape[1] + head;
    const place = run.pointed ? run.pointed.indexOf(at) : at;
    if (place < 0) return null;
    const name = `${key}|${state.kind}|points`;
    if (!cache.has(name)) cache.set(name, report.unpack(points.packed));
    const ends = await floats(`${name}|ends`, points.ends), whole = await cache.get(name);
    const n = run.row.length, low = ends[place], high = ends[ends.length / 2 + place];
    return run.row.map((row, i) => {
      const x = whole[place * n + i];
      const value = x === data.undefined ? null : low + (x / data.steps) * (high - low);
      return { category: run.categories[run.category[i]], row: run.rows[row], estimate: value };
    });
  }

  function describe(row, quantity) {
    const lines = [`layer ${row.layer}, head ${row.head}`,
      `difference in focus ${report.interval(row.estimate, row.low, row.high, 4)}`,
      `g ${report.signed(row.g, 2)}, q ${report.chance(row.q)}, max-T p ${report.chance(row.p_max)}`];
    if (row.slot != null) lines.push(`slot minus uniform ${report.signed(row.slot, 4)}`);
    if (row.kl != null) lines.push(`KL ${report.show(row.kl, 3)} nats`);
    return lines.join("\n");
  }

  function mapSpec(data, rows, state, quantity) {
    const spec = structuredClone(data.map);
    const signed = quantity !== "kl";
    const size = Math.max(...rows.map((row) => Math.abs(row[quantity] || 0)), 1e-12);
    spec.data.values = rows.map((row) => ({
      layer: row.layer, head: row.head, value: row[quantity], text: describe(row, quantity),
      passed: (quantity === "estimate" || quantity === "g") && row.q != null && row.q < 0.05,
      chosen: row.layer === state.layer && row.head === state.head,
    }));
    const heads = new Set(rows.map((row) => row.head)).size;
    spec.height = { step: heads > 24 ? 9 : 16 };
    const colour = spec.layer[0].encoding.color;
    colour.scale = signed
      ? Object.assign({}, colour.scale, { domain: [-size, -size / 2, 0, size / 2, size] })
      : { scheme: "viridis", domain: [0, size] };
    if (quantity === "slot") colour.scale.range = data.excess;
    colour.legend.title = QUANTITIES[quantity];
    spec.description = `${QUANTITIES[quantity]} of every head by layer; the table below has the numbers`;
    return spec;
  }

  async function drawHead(data, state, rows) {
    const title = document.getElementById("heads-chosen");
    const tests = document.getElementById("heads-tests");
    const place = document.getElementById("heads-points");
    const row = rows.find((one) => one.layer === state.layer && one.head === state.head);
    title.hidden = place.hidden = tests.hidden = !row;
    document.getElementById("heads-rounded").hidden = !row;
    if (!row) return;
    title.textContent = `Layer ${row.layer}, head ${row.head}: ${report.kindName(state.kind)} entropy `
      + `by category, ${state.set}, ${state.side}`;
    tests.replaceChildren(report.make("p", {}, `${report.contrastName(state.contrast)}: `
      + describe(row).split("\n").slice(1).join("; ")));
    const points = await headPoints(data, state, state.layer, state.head);
    if (!points) {
      place.replaceChildren(report.make("p", { class: "note" }, "The values of this head at this kind "
        + "are not in the page, to keep it small; the run folder has them."));
      data.points = [];
      return;
    }
    const spec = structuredClone(data.spread);
    const present = data.order.filter((name) => points.some((point) => point.category === name));
    const names = present.map((name) => report.look(name).name);
    spec.encoding.x.sort = spec.encoding.color.scale.domain = names;
    spec.encoding.color.scale.range = present.map((name) => report.look(name).colour);
    spec.data.values = points.map((point, i) => ({
      category: report.look(point.category).name, value: point.estimate, shift: ((i * 0.618) % 1) - 0.5,
      text: `${point.row}\n${report.show(point.estimate, 3)}`,
    }));
    for (const layer of spec.layer) {
      layer.encoding.y.title = state.kind === "raw" ? "entropy (nats)" : "entropy (1: uniform)";
    }
    spec.description = title.textContent;
    data.points = points;
    await report.chart(place, spec);
  }

  function drawTable(data, state, rows, quantity) {
    const size = (row) => Math.abs(row[quantity] == null ? -1 : row[quantity]);
    const strongest = Array.from(rows).sort((a, b) => size(b) - size(a)).slice(0, SHOWN);
    const known = (id) => rows.some((row) => row[id] != null);
    const columns = [
      { id: "layer", name: "layer" }, { id: "head", name: "head" },
      { id: "estimate", name: "difference in focus [95 %]",
        show: (x, row) => report.interval(row.estimate, row.low, row.high, 4) },
      { id: "g", name: "g", show: (x) => report.signed(x, 2) },
      { id: "q", name: "q (BH)", show: report.chance },
      { id: "p_max", name: "max-T p", show: report.chance },
    ];
    if (known("slot")) {
      columns.push({ id: "slot", name: "slot minus uniform", show: (x) => report.signed(x, 4) });
    }
    if (known("kl")) columns.push({ id: "kl", name: "KL", show: (x) => report.show(x, 3) });
    const shown = Math.min(SHOWN, rows.length);
    report.table(document.getElementById("heads-table"), columns, strongest, {
      caption: `The ${shown} of ${rows.length} heads with the largest ${QUANTITIES[quantity]}: `
        + `${report.contrastName(state.contrast)}, ${report.kindName(state.kind)}`,
      onrow: (row) => report.set({ layer: row.layer, head: row.head }),
      current: (row) => row.layer === state.layer && row.head === state.head,
    });
  }

  function fillQuantities(run) {
    const select = document.getElementById("heads-quantity");
    const ids = Object.keys(QUANTITIES).filter((id) => !(id in run) || run[id]);
    if (ids.join() !== Array.from(select.options, (option) => option.value).join()) {
      const before = select.value;
      select.replaceChildren(...ids.map((id) => report.make("option", { value: id }, QUANTITIES[id])));
      select.value = ids.includes(before) ? before : "estimate";
    }
    return select.value;
  }

  report.section("heads", {
    start(root, data) {
      data.order = Object.keys(report.page.menus.looks);
      data.points = [];
      report.headPoints = (state) => headPoints(data, state, state.layer, state.head);
      const layer = document.getElementById("heads-layer"), head = document.getElementById("heads-head");
      const choose = () => {
        if (Number.isInteger(layer.valueAsNumber) && Number.isInteger(head.valueAsNumber)) {
          report.set({ layer: layer.valueAsNumber, head: head.valueAsNumber });
        }
      };
      layer.addEventListener("change", choose);
      head.addEventListener("change", choose);
      document.getElementById("heads-none").addEventListener("click", () => {
        report.set({ layer: null, head: null });
      });
      document.getElementById("heads-quantity").addEventListener("change", () => {
        this.update(root, data, report.state, new Set(["quantity"]));
      });
      const numbers = root.querySelector(":scope > .numbers");
      const facts = () => {
        const { set, side, kind, contrast } = report.state;
        return Object.assign({}, data.runs[`${set}|${side}`].facts, { set, run: side, kind, contrast });
      };
      report.link(numbers, "heads.csv", async () => (await headRows(data, report.state)).map((row) => {
        const { slot, kl, ...rest } = row;
        return Object.assign(facts(), rest, { slot_excess_estimate: slot, kl_estimate: kl });
      }));
      report.link(numbers, "head_points.csv", () => data.points.map((point) => {
        const { contrast, ...rest } = facts();
        return Object.assign(rest, { layer: report.state.layer, head: report.state.head }, point);
      }));
    },
    async update(root, data, state, changed) {
      const rows = await headRows(data, state);
      const quantity = fillQuantities(data.runs[`${state.set}|${state.side}`]);
      const within = rows.filter((row) => row.layer >= state.layers[0] && row.layer <= state.layers[1]);
      const passed = within.filter((row) => row.q != null && row.q < 0.05).length;
      const tested = within.some((row) => row.q != null);
      document.getElementById("heads-layer").value = state.layer ?? "";
      document.getElementById("heads-head").value = state.head ?? "";
      document.getElementById("heads-said").textContent =
        `${report.contrastName(state.contrast)}, ${report.kindName(state.kind)}, ${state.set}, `
        + `${state.side}, layers ${state.layers[0]} to ${state.layers[1]}: ${within.length} heads, `
        + (tested ? `${passed} pass Benjamini-Hochberg at 0.05 over all heads (dots).`
          : "not tested: the design allows no test.")
        + (data.swept.length && !data.runs[`${state.set}|${state.side}`].kl
          ? ` What cutting a head does was measured for: ${data.swept.join("; ")}.` : "")
        + (quantity === "kl" ? ` ${data.runs[`${state.set}|${state.side}`].kl.said}` : "");
      await drawHead(data, state, rows);
      drawTable(data, state, within, quantity);
      const view = await report.chart(document.getElementById("heads-map"),
        mapSpec(data, within, state, quantity));
      view.addEventListener("click", (event, item) => {
        if (item && item.datum && item.datum.layer != null) {
          report.set({ layer: item.datum.layer, head: item.datum.head });
        }
      });
    },
  });
})();
