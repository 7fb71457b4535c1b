"use strict";
/* RFC and RSI at the chosen kind, and what explains the differences between prompts. */
report.section("summary", {
  async update(root, data, state, changed) {
    if (changed.has("kind")) {
      const text = ["set", "run", "format", "index"], cells = data.rows[state.kind];
      const columns = data.columns.map((own) => Object.assign({ text: text.includes(own.id) }, own));
      const rows = cells.map((row) =>
        Object.fromEntries(data.columns.map((own, i) => [own.id, row[i]])));
      report.table(document.getElementById("summary-means"), columns, rows, {
        caption: `${report.kindName(state.kind)}; above the null (0, or the length null if raw): `
          + "attention on self-referent prompts is the more focused. Primary: the crossed set, "
          + "normalised. Largest layer: minus its null" });
    }
    if (changed.has("set") || changed.has("side") || changed.has("theme")) {
      const spec = structuredClone(data.spec);
      spec.data.values = data.shares
        .filter((row) => row.set === state.set && row.run === state.side && row.estimate != null)
        .map((row) => Object.assign({ text: `${row.factor}: ${row.estimate.toFixed(3)}` }, row));
      spec.description = "Share of the variance between prompts by factor: "
        + spec.data.values.map((row) => row.text).join(", ");
      document.getElementById("summary-shares-title").textContent =
        `What explains the differences between prompts: ${state.set}, ${state.side}`;
      document.getElementById("summary-shares-said").textContent =
        data.said[`${state.set}|${state.side}`];
      await report.chart(document.getElementById("summary-shares"), spec);
    }
  },
});
