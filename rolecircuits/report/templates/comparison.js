"use strict";
/* Both runs of the chosen set on one axis, their difference below it, and the layers as a table. */
report.section("comparison", {
  start(root, data) {
    const select = document.getElementById("comparison-quantity");
    for (const [id, name] of [...Object.entries(data.indices), ["contrast", "contrast of the menu"]]) {
      select.append(report.make("option", { value: id }, name));
    }
    select.addEventListener("change", () => {
      this.update(root, data, report.state, new Set(["quantity"]));
    });
  },
  async update(root, data, state, changed) {
    const ours = ["set", "kind", "contrast", "layers", "theme", "quantity"];
    if (!ours.some((name) => changed.has(name))) return;
    const select = document.getElementById("comparison-quantity");
    const set = data.sets[state.set], of = set && set[state.kind];
    if (of && !Object.keys(of.indices).length) select.value = "contrast";
    const id = select.value, contrast = id === "contrast";
    const found = of && (contrast ? of.contrasts[state.contrast] : of.indices[id]);
    const none = document.getElementById("comparison-none");
    none.hidden = Boolean(found);
    for (const place of ["runs", "difference", "table", "shown"]) {
      document.getElementById(`comparison-${place}`).hidden = !found;
    }
    const notes = document.getElementById("comparison-notes");
    notes.replaceChildren(...(data.notes[state.set] || []).map((note) =>
      report.make("p", { class: "note", dir: "auto" }, note)));
    if (!found) {
      none.textContent = "This set has no pair of runs with this quantity.";
      return;
    }
    const name = contrast ? `Focus, ${report.contrastName(state.contrast)}` : data.indices[id];
    document.getElementById("comparison-shown").textContent =
      `${name}, ${report.kindName(state.kind)}, ${state.set}`;
    const title = contrast ? "difference in focus" : `${name} minus null`;
    const values = ["base", "instruct"].flatMap((side) =>
      report.layerValues(found[side], side, state.layers));
    const difference = report.layerValues(found.diff, "instruct - base", state.layers);
    const what = `${name} by layer of base and instruct with 95 % bands; the table has the numbers`;
    const spec = report.layerSpec(data.spec, values, title, state.layers, what);
    for (const layer of spec.layer) delete layer.params;
    await report.chart(document.getElementById("comparison-runs"), spec);
    await report.chart(document.getElementById("comparison-difference"), report.layerSpec(
      data.difference, difference, "instruct - base", state.layers,
      `instruct - base of ${name} by layer; the table has the numbers`));
    const rows = difference.map((row) => {
      const out = { layer: row.layer };
      for (const part of ["base", "instruct", "diff"]) {
        for (const [column, of] of Object.entries(found[part])) out[`${part}_${column}`] = of[row.layer];
      }
      return out;
    });
    const cell = (part) => ({ id: `${part}_estimate`, show: (x, row) =>
      report.interval(x, row[`${part}_low`], row[`${part}_high`], 4) });
    report.table(document.getElementById("comparison-table"), [
      { id: "layer", name: "layer" },
      { name: "base [95 %]", ...cell("base") }, { name: "instruct [95 %]", ...cell("instruct") },
      { name: "instruct - base [95 %]", ...cell("diff") },
      { id: "diff_q", name: "q (BH)", show: report.chance },
      { id: "diff_p_max", name: "max-T p", show: report.chance },
    ], rows, { sort: ["layer", "ascending"], onrow: (row) => report.set({ layer: row.layer }),
      current: (row) => row.layer === state.layer,
      caption: `${name}, ${report.kindName(state.kind)}: layers of both runs` });
  },
});
