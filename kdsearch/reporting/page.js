"use strict";
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
      const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
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
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
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
  }
  const paint = (print) => plots.forEach((plot) => Plotly.relayout(plot, theme(plot, print)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(false));
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
})();
