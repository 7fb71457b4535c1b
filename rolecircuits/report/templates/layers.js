"use strict";
/* RFC, RSI and the contrast by layer, both runs of the chosen set on one axis. A brush over layers
   is state.layers. */
report.layerValues = function (columns, run, layers, primary) {
  const rows = [], c = columns;
  for (let layer = 0; layer < c.estimate.length; layer++) {
    if (layer < layers[0] || layer > layers[1]) continue;
    const own = c.p_primary && c.p_primary[layer] != null ? c.p_primary[layer] : c.p_max[layer];
    const lines = [`layer ${layer}, ${run}`,
      report.interval(c.estimate[layer], c.low[layer], c.high[layer], 4)];
    if (c.null && c.null[layer]) lines.push(`length null ${report.signed(c.null[layer], 4)}`);
    lines.push(`q ${report.chance(c.q[layer])}, max-T p ${report.chance(own)}`);
    if (c.verdict && c.verdict[layer]) lines.push(c.verdict[layer]);
    rows.push({ layer, run, estimate: c.estimate[layer], low: c.low[layer], high: c.high[layer],
      passed: own != null && own < 0.05, text: lines.join("\n") });
  }
  return rows;
};

report.kindName = (kind) => report.page.menus.kinds.find((item) => item.id === kind).name;
report.contrastName = function (id) {
  const found = report.currentSet().contrasts.find((item) => item.id === id);
  return found ? found.name : "";
};

/* A copy of a spec of layers with its values, title and domain. */
report.layerSpec = function (spec, values, title, domain, what) {
  const copy = structuredClone(spec);
  copy.data.values = values;
  copy.encoding.x.scale.domain = [domain[0] - 0.5, domain[1] + 0.5];
  copy.encoding.x.axis.tickCount = Math.min(30, domain[1] - domain[0] + 1);
  copy.description = what;
  for (const layer of copy.layer) {
    const y = layer.encoding && layer.encoding.y;
    if (y && y.field) y.title = title;
  }
  return copy;
};

report.section("layers", {
  start(root, data) {
    const place = root.querySelector(".panels");
    data.panels = [...Object.keys(data.indices), "contrast"].map((id) => {
      const title = report.make("h3");
      const element = report.make("div", { class: "chart", id: `layers-${id}` });
      place.append(title, element);
      return { id, title, element, timer: null };
    });
  },
  update(root, data, state, changed) {
    const ours = ["set", "kind", "contrast", "layers", "theme"];
    if (!ours.some((name) => changed.has(name))) return undefined;
    const own = changed.size === 1 && changed.has("layers") ? data.brushing : null;
    const set = report.currentSet(), last = set.n_layers - 1;
    return Promise.all(data.panels.map(async (panel) => {
      if (panel.id === own) return;  // its brush shows the range already
      const contrast = panel.id === "contrast";
      const name = contrast ? `Focus, ${report.contrastName(state.contrast)}`
        : data.indices[panel.id];
      panel.title.textContent = `${name}, ${report.kindName(state.kind)}`;
      const values = set.sides.flatMap((side) => {
        const of = data.runs[`${state.set}|${side}`][state.kind];
        const columns = contrast ? of.contrasts[state.contrast] : of.indices[panel.id];
        return columns ? report.layerValues(columns, side, [0, last]) : [];
      });
      panel.title.hidden = panel.element.hidden = !values.length;
      if (!values.length) return;
      const title = contrast ? "difference in focus" : `${name} minus null`;
      const what = `${name} by layer with 95 % bands, prompt set ${state.set}; `
        + "the numbers are in layers.csv and layer_contrasts.csv";
      const spec = report.layerSpec(data.spec, values, title, [0, last], what);
      const whole = state.layers[0] === 0 && state.layers[1] === last;
      const brushed = spec.layer.find((layer) => layer.params);
      if (!whole) brushed.params[0].value = { x: [state.layers[0] - 0.5, state.layers[1] + 0.5] };
      clearTimeout(panel.timer);  // of the chart that goes: its range is not that of the state
      const view = await report.chart(panel.element, spec);
      clearTimeout(panel.timer);
      view.addSignalListener("brush", (signal, range) => {
        clearTimeout(panel.timer);
        const before = report.state.layers;
        panel.timer = setTimeout(() => {
          if (report.state.layers !== before) return;  // a menu has changed them meanwhile
          const ends = range && range.layer;
          const layers = ends ? [Math.ceil(ends[0]), Math.floor(ends[1])] : [0, last];
          if (layers[0] > layers[1]) layers[1] = layers[0];
          data.brushing = panel.id;
          report.set({ layers });
          data.brushing = null;
        }, 150);
      });
    }));
  },
});
