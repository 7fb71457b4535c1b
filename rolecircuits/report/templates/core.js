"use strict";
/* What all sections share: one state, menus, charts, tables, downloads.

   report.state                 {set, side, kind, contrast, layers: [lo, hi], layer, head, prompt}
   report.set({kind: "raw"})    changes it and calls every listener once, with what changed (a Set)
   report.section(name, {start(root, data), update(root, data, state, changed)})
   report.chart(element, spec) -> Promise<view>
   report.views.get(element)    the view of its chart
   report.table(element, columns, rows, {sort, onrow, caption})
   report.unpack(base64) -> Promise<Uint8Array>
   report.numbers(packed) -> Promise<{shape, at(...places)}>    of packing.pack_numbers
   report.idle() -> Promise     when no section is being updated
   report.look(name)            how a category is drawn: {name, colour}
   report.words(name)           self_referent as self-referent
   report.link(element, name, make)   a button that downloads what make() gives as CSV

   Data enter the page as text nodes only. */
const report = (function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const page = read("page-data");
  const state = Object.assign(
    { set: null, side: null, kind: "normalised", contrast: null, layers: null, layer: null,
      head: null, prompt: null },
    page.state
  );
  const sections = [], listeners = [], charts = new Map(), busy = new Set();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let started = false;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
    return element;
  }

  /* A name of code in words. */
  const words = (name) => (name === "self_referent" ? "self-referent" : name.replace(/_/g, " "));

  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  function setState(change) {
    const next = settle(Object.assign({}, state, change));
    const changed = new Set(Object.keys(next).filter((name) => !same(next[name], state[name])));
    if (!changed.size) return;
    Object.assign(state, next);
    drawMenus();
    for (const listener of listeners) listener(state, changed);
  }

  /* A state whose side, contrast, layer and head exist in its set. */
  function settle(next) {
    const set = (page.menus.sets || []).find((item) => item.id === next.set);
    if (!set) return next;
    if (!set.sides.includes(next.side)) next.side = set.sides[set.sides.length - 1];
    if (!set.contrasts.some((item) => item.id === next.contrast)) {
      next.contrast = set.contrasts.length ? set.contrasts[0].id : null;
    }
    const last = set.n_layers - 1, clip = (x, most) => Math.max(0, Math.min(most, x));
    let [low, high] = next.layers || [0, last];
    low = clip(low, last);
    high = clip(high, last);
    next.layers = low <= high ? [low, high] : [high, low];
    if (next.layer != null) next.layer = clip(next.layer, last);
    if (next.head != null) next.head = clip(next.head, set.n_heads - 1);
    return next;
  }

  const currentSet = () => (page.menus.sets || []).find((item) => item.id === state.set);

  function drawMenus() {
    const form = document.getElementById("menus"), set = currentSet();
    if (!set) return;
    const plain = (values) => values.map((id) => ({ id, name: id }));
    const menus = [
      ["set", "Set", page.menus.sets], ["side", "Run", plain(set.sides)],
      ["kind", "Entropy", page.menus.kinds], ["contrast", "Contrast", set.contrasts],
    ];
    for (const [name, label, options] of menus) {
      let select = document.getElementById(`menu-${name}`);
      if (!select) {
        select = make("select", { id: `menu-${name}`, name });
        select.addEventListener("change", () => setState({ [name]: select.value }));
        form.append(make("label", { for: select.id }, label), select);
      }
      const ids = options.map((item) => item.id);
      if (!same(ids, Array.from(select.options, (option) => option.value))) {
        select.replaceChildren(
          ...options.map((item) => make("option", { value: item.id }, item.name))
        );
      }
      select.value = state[name];
      select.disabled = options.length < 2;
    }
    let low = document.getElementById("menu-low"), high = document.getElementById("menu-high");
    if (!low) {
      const number = (id) => make("input", { id, type: "number", min: 0, step: 1 });
      low = number("menu-low");
      high = number("menu-high");
      const all = make("button", { type: "button", id: "menu-all" }, "all layers");
      const change = () => {
        const ends = [low.valueAsNumber, high.valueAsNumber];
        if (ends.every(Number.isInteger)) setState({ layers: ends });
      };
      low.addEventListener("change", change);
      high.addEventListener("change", change);
      all.addEventListener("click", () => setState({ layers: [0, currentSet().n_layers - 1] }));
      form.append(make("label", { for: low.id }, "Layers"), low,
        make("label", { for: high.id }, "to"), high, all);
    }
    low.max = high.max = set.n_layers - 1;
    [low.value, high.value] = state.layers;
    form.hidden = false;
  }

  /* Vega takes colours as texts. In SVG they follow the page, printed pages too; a canvas gets
     those of the moment. */
  function theme(renderer) {
    const style = getComputedStyle(document.body);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ink = renderer === "svg" ? "currentColor" : colour("--ink");
    const axis = { labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink,
      gridColor: ink, gridOpacity: 0.15, domainOpacity: 0.5, tickOpacity: 0.5,
      titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12 };
    const text = { labelColor: ink, titleColor: ink, titleFontWeight: "normal" };
    return {
      background: null, font: getComputedStyle(document.body).fontFamily, axis, legend: text,
      header: text, title: { color: ink, subtitleColor: ink, fontWeight: "bold", anchor: "start" },
      view: { stroke: null }, rule: { color: ink }, text: { color: ink },
      range: { category: Array.from({ length: 12 }, (_, i) => `var(--other-${i})`) },
    };
  }

  function countMarks(spec) {
    const values = spec.data && spec.data.values ? spec.data.values.length : 0;
    const inner = ["layer", "hconcat", "vconcat", "concat"].flatMap((name) => spec[name] || []);
    return values + inner.concat(spec.spec || []).reduce((n, part) => n + countMarks(part), 0);
  }

  let tip = null;
  function showTip(handler, event, item, value) {
    if (!tip) {
      tip = make("div", { class: "tip", role: "tooltip" });
      document.body.append(tip);
    }
    if (value == null || value === "") {
      tip.hidden = true;
      return;
    }
    const lines = typeof value === "object"
      ? Object.entries(value).map(([name, text]) => `${name}: ${text}`) : String(value).split("\n");
    tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
    tip.hidden = false;
    const room = document.documentElement, box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, room.clientWidth - box.width - 4);
    const y = event.clientY + 14 + box.height < room.clientHeight
      ? event.clientY + 14 : event.clientY - box.height - 10;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  }

  /* How a category is drawn: {name, colour}. */
  const look = (name) => page.menus.looks[name] || { name: words(name), colour: "var(--control)" };

  /* A copy of a spec whose variables of the style sheet are the colours of the moment. */
  function fixColours(spec) {
    const style = getComputedStyle(document.documentElement);
    const text = JSON.stringify(spec).replace(/"var\((--[^)"]+)\)"/g,
      (_, name) => JSON.stringify(style.getPropertyValue(name).trim()));
    return JSON.parse(text);
  }

  /* Charts of one element follow one another; the view of a newer one replaces the older. */
  async function chart(element, spec) {
    const renderer = countMarks(spec) > 2000 ? "canvas" : "svg";
    const mine = { spec, view: null };
    const before = charts.get(element);
    charts.set(element, mine);
    const drawn = renderer === "canvas" ? fixColours(spec) : spec;
    const done = await vegaEmbed(element, drawn, {
      actions: false, ast: true, renderer, defaultStyle: false, mode: "vega-lite",
      config: renderer === "canvas" ? fixColours(theme(renderer)) : theme(renderer), tooltip: showTip, logLevel: 1,
    });
    if (before && before.view) before.view.finalize();
    mine.view = done.view;
    if (spec.description) {
      const image = element.querySelector("svg, canvas");
      if (image) image.setAttribute("aria-label", spec.description);
    }
    return done.view;
  }

  dark.addEventListener("change", () => {
    for (const listener of listeners) listener(state, new Set(["theme"]));
  });

  /* What is folded away is printed. */
  window.addEventListener("beforeprint", () => {
    for (const element of document.querySelectorAll("details.printed")) element.open = true;
  });

  function show(value, digits = 4) {
    if (value == null || Number.isNaN(value)) return "-";
    if (typeof value !== "number") return String(value);
    return Number.isInteger(value) ? String(value) : value.toPrecision(digits);
  }

  const signed = (x, digits = 3) =>
    x == null || Number.isNaN(x) ? "-" : (x < 0 ? "-" : "+") + Math.abs(x).toFixed(digits);

  /* A number beside its interval, as the tables of the terminal have it. */
  function interval(estimate, low, high, digits = 3) {
    if (low == null || Number.isNaN(low)) return signed(estimate, digits);
    const ends = [low, high].map((x) => signed(x, digits));
    return `${signed(estimate, digits)} [${ends.join(", ")}]`;
  }

  const chance = (p) =>
    p == null || Number.isNaN(p) ? "-" : p < 0.0001 ? "<0.0001" : p.toFixed(4);

  /* columns  [{id, name, show(value, row), text: whether it is text}]
     options  sort: [id, "ascending" | "descending"], onrow(row), current(row), caption */
  function table(element, columns, rows, options = {}) {
    let [by, order] = options.sort || [null, "ascending"];
    const body = make("tbody"), head = make("tr"), grid = make("table", { class: "sortable" });
    if (options.caption) grid.append(make("caption", {}, options.caption));
    function compare(a, b) {
      const x = a[by], y = b[by], none = (v) => v == null || Number.isNaN(v);
      if (none(x) || none(y)) return none(x) - none(y);
      const size = typeof x === "number" && typeof y === "number"
        ? x - y : String(x).localeCompare(String(y));
      return order === "ascending" ? size : -size;
    }
    function fill() {
      const sorted = by == null ? rows : Array.from(rows).sort(compare);
      body.replaceChildren(...sorted.map((row) => {
        const cells = columns.map((column, place) => {
          const shown = column.show ? column.show(row[column.id], row) : show(row[column.id]);
          const cell = make("td", { class: column.text ? "text" : "number", dir: "auto" });
          if (place || !options.onrow) cell.append(shown);
          else {
            const button = make("button", { type: "button", class: "plain" }, shown);
            button.addEventListener("click", () => options.onrow(row));
            cell.append(button);
          }
          return cell;
        });
        const current = options.current && options.current(row);
        return make("tr", { "aria-current": current ? "true" : null }, ...cells);
      }));
      Array.from(head.children).forEach((cell, place) => {
        cell.setAttribute("aria-sort", columns[place].id === by ? order : "none");
      });
    }
    for (const column of columns) {
      const button = make("button", { type: "button" }, column.name);
      button.addEventListener("click", () => {
        const again = by === column.id;
        order = again && order === "ascending" ? "descending" : "ascending";
        by = column.id;
        fill();
      });
      head.append(make("th", { scope: "col" }, button));
    }
    grid.append(make("thead", {}, head), body);
    fill();
    element.replaceChildren(make("div", { class: "wide", tabindex: 0, role: "region",
      "aria-label": options.caption || "table" }, grid));
  }

  async function unpack(text) {
    const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /* Numbers that packing.pack_numbers packed; at(i, j, ...) is NaN where undefined. */
  async function numbers(plain) {
    const bytes = await unpack(plain.packed);
    const steps = plain.bits === 8 ? bytes : new Uint16Array(bytes.buffer);
    const top = 2 ** plain.bits - 1;
    const at = (...places) => {
      const flat = plain.shape.reduce((sum, size, axis) => sum * size + places[axis], 0);
      return steps[flat] === top ? NaN : plain.low + plain.step * steps[flat];
    };
    return { shape: plain.shape, at };
  }

  /* A text that a spreadsheet would run as a formula gets a quote mark, as in the CSV files. */
  function cell(value) {
    if (value == null || (typeof value === "number" && Number.isNaN(value))) return "";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "number") return String(value);
    const safe = String(value).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g,
      (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0"));
    const text = /^[=+\-@\t\r\n]/.test(safe) ? "'" + safe : safe;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv(rows) {
    const columns = rows.length ? Object.keys(rows[0]) : [];
    const lines = rows.map((row) => columns.map((name) => cell(row[name])).join(","));
    return [columns.join(","), ...lines].join("\r\n") + "\r\n";
  }

  function link(element, name, makeRows) {
    const button = make("button", { type: "button", class: "download" }, name);
    button.addEventListener("click", async () => {
      const blob = new Blob([csv(await makeRows())], { type: "text/csv" });
      const anchor = make("a", { href: URL.createObjectURL(blob), download: name });
      document.body.append(anchor);
      anchor.click();
      anchor.remove();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
    });
    element.append(button, " ");
    return button;
  }

  const unpackJson = async (text) => JSON.parse(new TextDecoder().decode(await unpack(text)));

  /* Rows of a table that build_page packed, column by column. */
  async function unpackTable(table) {
    const values = await unpackJson(table.packed);
    const row = (i) => table.columns.map((name, column) => [name, values[column][i]]);
    return (values[0] || []).map((_, i) => Object.fromEntries(row(i)));
  }

  function offer(root, tables) {
    const place = root.querySelector(":scope > .numbers");
    for (const [name, table] of Object.entries(tables)) link(place, name, () => unpackTable(table));
    if (place.children.length) {
      place.prepend("Numbers: ");
      place.hidden = false;
    }
  }

  function trouble(error) {
    const place = document.getElementById("trouble");
    place.textContent = `Part of this page could not be drawn: ${error.message || error}`;
    place.hidden = false;
    console.error(error);
  }

  /* A section is updated once at a time; what changes meanwhile is joined into the next update. */
  function inTurn(update) {
    let waiting = null, running = null;
    async function work() {
      while (waiting) {
        const changed = waiting;
        waiting = null;
        try {
          await update(changed);
        } catch (error) {
          trouble(error);
        }
      }
      running = null;
    }
    return function (changed) {
      waiting = new Set([...(waiting || []), ...changed]);
      if (!running) {
        running = work();
        busy.add(running);
        running.finally(((mine) => () => busy.delete(mine))(running));
      }
      return running;
    };
  }

  /* Resolves when no section is being updated. */
  async function idle() {
    while (busy.size) await Promise.all(busy);
  }

  async function start() {
    started = true;
    Object.assign(state, settle(Object.assign({}, state)));
    drawMenus();
    for (const element of document.querySelectorAll(".live:not(.numbers):not(form)")) {
      element.hidden = false;
    }
    for (const { name, parts } of sections) {
      const root = document.getElementById(name), { tables, ...own } = read(`${name}-data`);
      try {
        const data = own.packed ? await unpackJson(own.packed) : own.data;
        if (parts.start) await parts.start(root, data);
        offer(root, tables);
        if (parts.update) {
          const follow = inTurn((changed) => parts.update(root, data, state, changed));
          listeners.push((now, changed) => follow(changed));
          await follow(new Set(Object.keys(state).concat("theme")));
        }
      } catch (error) {
        trouble(error);
      }
      await new Promise((resolve) => setTimeout(resolve));  // the page stays alive between sections
    }
    document.documentElement.dataset.ready = "yes";
  }

  /* A section whose script is missing still offers its tables. */
  function begin() {
    const known = new Set(sections.map((item) => item.name));
    for (const element of document.querySelectorAll("main > section")) {
      if (!known.has(element.id)) sections.push({ name: element.id, parts: {} });
    }
    const order = Array.from(document.querySelectorAll("main > section"), (e) => e.id);
    sections.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
    start().catch(trouble);
  }
  document.addEventListener("DOMContentLoaded", begin);

  return {
    state, page, set: setState, listen: (listener) => listeners.push(listener), chart, table,
    section: (name, parts) => sections.push({ name, parts }),
    views: { get: (element) => charts.get(element)?.view }, unpack, numbers, words, look, link, make, show, signed, interval, chance, currentSet, csv, idle,
    get started() { return started; },
  };
})();
