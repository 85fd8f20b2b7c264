"use strict";
const unpacked = async (element) => {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
(() => {
  // the table of every trial: sorted by its heads, filtered by words and state, saved as CSV
  const table = document.querySelector("table.all"), tools = document.querySelector(".tools");
  if (!table || !tools) return;
  tools.hidden = false;
  const body = table.tBodies[0], rows = [...body.rows];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const time = /^([\d,]+) min (\d+) s/.exec(text);
    if (time) return 60 * time[1].replaceAll(",", "") + +time[2];
    const number = /^-?[\d,]*\.?\d+/.exec(text);
    return number ? +number[0].replaceAll(",", "") : text.toLowerCase();
  };
  const nothing = (item) => item === "" || item === "–";
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || !(head.hasAttribute("aria-sort") || head.className);
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row) => [value(row, column), row]);
      keyed.sort(([a], [b]) => {
        if (nothing(a) || nothing(b)) return nothing(a) - nothing(b); // what is missing stays below
        const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
        return up ? order : -order;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
  const [words, state] = [tools.querySelector("input"), tools.querySelector("select")];
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.toLowerCase());
  const texts = rows.map((row) => [...row.cells].map((cell, i) => `${heads[i]} ${cell.textContent.toLowerCase()}`).join(" | "));
  const filter = () => {
    const asked = words.value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !(asked.every((word) => texts[i].includes(word)) && row.cells[1].textContent.startsWith(state.value));
      shown += !row.hidden;
    });
    tools.querySelector("output").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} trials`;
  };
  tools.addEventListener("submit", (event) => event.preventDefault());
  words.addEventListener("input", filter);
  state.addEventListener("change", filter);
  const packed = document.getElementById("csv"), save = tools.querySelector(".save");
  if (packed) unpacked(packed).then((text) => { save.href = URL.createObjectURL(new Blob([text], { type: "text/csv" })); });
})();
const select = (number, scroll) => {
  for (const row of document.querySelectorAll("tr.selected")) row.classList.remove("selected");
  const row = document.getElementById("trial-" + number);
  if (row) {
    row.classList.add("selected");
    row.hidden = false;
    if (scroll) row.scrollIntoView({ block: "center" });
  }
  const curves = document.getElementById("curves");
  if (!curves || !curves.dataset.ready) return;
  const known = curves.data.findIndex((trace) => trace.meta === "selected");
  if (known >= 0) Plotly.deleteTraces(curves, known);
  const x = [], y = [];
  for (const trace of curves.data) {
    if (!trace.mode.includes("lines")) continue;
    trace.text.forEach((name, i) => {
      if (name === String(number) && trace.x[i] !== null) { x.push(trace.x[i]); y.push(trace.y[i]); }
    });
  }
  const color = getComputedStyle(document.documentElement).getPropertyValue("--fg").trim();
  if (x.length) Plotly.addTraces(curves, { x, y, mode: "lines+markers", name: "trial " + number, meta: "selected",
    line: { color, width: 3 }, marker: { size: 6 }, text: x.map(() => String(number)), hoverinfo: "skip" });
};
(async () => {
  const plots = [...document.querySelectorAll(".plot")];
  if (!plots.length) return;
  const failed = (reason) => {
    for (const plot of plots) {
      plot.classList.add("off");
      plot.textContent = "The figure could not be drawn (" + reason + "); the tables need no script.";
    }
  };
  const packed = document.getElementById("plotlyjs");
  try {
    if (packed) {
      const script = document.createElement("script");
      script.textContent = await unpacked(packed);
      document.head.append(script);
    }
    if (!window.Plotly) throw new Error("plotly.js is not there");
  } catch (error) {
    failed(error.message);
    return;
  }
  const [phone, narrow] = [560, 900].map((width) => window.matchMedia(`(max-width: ${width}px)`).matches);
  const LONG = 20; // letters that fit half a phone's width, beside the legend's line
  const axes = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  const theme = (plot, print) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name, paper) => (print ? paper : style.getPropertyValue(name).trim());
    const fg = color("--fg", "#16191d"), grid = color("--grid", "#e6e9ed"), bg = color("--card", "#f6f7f9");
    const painted = {
      "font.color": fg, "hoverlabel.bgcolor": bg, "hoverlabel.font.color": fg,
      "hoverlabel.bordercolor": color("--soft", "#545b66"),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    };
    for (const axis of axes(plot.layout)) painted[axis + ".gridcolor"] = painted[axis + ".zerolinecolor"] = grid;
    return painted;
  };
  for (const plot of plots) {
    const held = document.getElementById(plot.dataset.figure);
    const figure = JSON.parse(held.type === "text/plain" ? await unpacked(held) : held.textContent);
    const { layout } = figure;
    const margin = layout.margin ??= {};
    if (narrow) {
      // about two entries of the legend fit a row, or one long one: the figure grows by what its plot would lose
      const shown = layout.showlegend === false ? [] : figure.data.filter((trace) => trace.showlegend !== false);
      const longest = Math.max(0, ...shown.map((trace) => (trace.name ?? "").length));
      const single = longest > (phone ? LONG : 2 * LONG);
      const bottom = 64 + (single ? 20 * shown.length : 24 * Math.ceil(shown.length / 2));
      layout.height = (layout.height ?? plot.clientHeight) + bottom - (margin.b ?? 80);
      margin.b = bottom;
    }
    if (phone) {
      Object.assign(margin, { l: 54, r: 8 });
      (layout.legend ??= {}).font = { size: 11 };
      for (const axis of axes(layout)) if (layout[axis].title) layout[axis].title.font = { size: 12 };
      for (const menu of layout.updatemenus ?? []) if (menu.buttons.length > 3) menu.type = "dropdown";
      if (layout.meta && layout.meta.narrow) layout.xaxis.range = layout.meta.narrow;
    }
    const config = {
      responsive: true, displaylogo: false, displayModeBar: phone ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    };
    plot.textContent = "";
    await Plotly.newPlot(plot, figure.data, layout, config);
    await Plotly.relayout(plot, theme(plot, false));
    plot.dataset.ready = "yes";
    plot.on("plotly_click", ({ points: [point] }) => {
      const number = Number.isInteger(point.customdata) ? point.customdata : plot.id === "curves" ? point.text : null;
      if (number !== null && document.getElementById("trial-" + number)) {
        history.replaceState(null, "", "#trial-" + number);
        select(number, false);
      }
    });
  }
  const chosen = () => {
    const found = /^#trial-(\d+)$/.exec(location.hash);
    if (found) select(+found[1], true);
  };
  window.addEventListener("hashchange", chosen);
  chosen();
  const paint = (print) => plots.forEach((plot) => Plotly.relayout(plot, theme(plot, print)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(false));
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
})();
