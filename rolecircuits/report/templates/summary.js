"use strict";
/* Means over layers at the chosen kind, and what explains the differences between prompts. */
report.section("summary", {
  async update(root, data, state, changed) {
    if (changed.has("kind")) {
      const rows = [];
      for (const [key, means] of Object.entries(data.means)) {
        const [set, side] = [key.slice(0, key.lastIndexOf("|")), key.slice(key.lastIndexOf("|") + 1)];
        for (const [index, [mean, low, high, passed, layers, tested]] of
          Object.entries(means[state.kind] || {})) {
          rows.push({ set, side, index: data.indices[index], mean, low, high,
            passed: tested ? passed : null, shown: tested ? `${passed} of ${layers}` : "not tested" });
        }
      }
      document.getElementById("summary-means-title").textContent =
        `Means over layers, ${report.kindName(state.kind)}`;
      report.table(document.getElementById("summary-means"), [
        { id: "set", name: "set", text: true }, { id: "side", name: "run", text: true },
        { id: "index", name: "index", text: true },
        { id: "mean", name: "mean [95 %]",
          show: (x, row) => report.interval(row.mean, row.low, row.high) },
        { id: "passed", name: "layers that pass max-T", show: (x, row) => row.shown },
      ], rows, { caption: `RFC and RSI, ${report.kindName(state.kind)}, mean over layers` });
    }
    if (changed.has("set") || changed.has("side") || changed.has("theme")) {
      const spec = structuredClone(data.spec);
      spec.data.values = data.shares
        .filter((row) => row.set === state.set && row.run === state.side && row.share != null)
        .map((row) => Object.assign({ text: `${row.factor}: ${row.share.toFixed(3)}` }, row));
      spec.description = "Share of the variance between prompts by factor: "
        + spec.data.values.map((row) => row.text).join(", ");
      await report.chart(document.getElementById("summary-shares"), spec);
    }
  },
});
