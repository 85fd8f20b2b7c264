"use strict";
(async () => {
  const plots = [...document.querySelectorAll(".plot")];
  if (!plots.length) return;
  const failed = (reason) => {
    for (const plot of plots) {
      plot.classList.add("off");
      plot.textContent = "The figure could not be drawn (" + reason + "); the tables hold the same data.";
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
  const theme = (print) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name, paper) => (print ? paper : style.getPropertyValue(name).trim());
    const fg = color("--fg", "#16191d"), grid = color("--grid", "#e6e9ed"), bg = color("--card", "#f6f7f9");
    return {
      "font.color": fg, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid,
      "hoverlabel.bgcolor": bg, "hoverlabel.font.color": fg, "hoverlabel.bordercolor": color("--soft", "#545b66"),
    };
  };
  for (const plot of plots) {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    if (narrow) {
      // about two entries of the legend fit a row: the figure grows by what its plot would lose
      const entries = figure.data.filter((trace) => trace.showlegend !== false).length;
      const { margin } = figure.layout;
      const bottom = 64 + 24 * Math.ceil(entries / 2);
      figure.layout.height += bottom - margin.b;
      margin.b = bottom;
    }
    if (phone) {
      const { margin, legend, meta, xaxis, yaxis } = figure.layout;
      Object.assign(margin, { l: 54, r: 8 });
      legend.font = { size: 11 };
      xaxis.title.font = yaxis.title.font = { size: 12 };
      if (meta && meta.narrow) xaxis.range = meta.narrow;
    }
    const config = {
      responsive: true, displaylogo: false, displayModeBar: phone ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    };
    plot.textContent = "";
    await Plotly.newPlot(plot, figure.data, figure.layout, config);
    await Plotly.relayout(plot, theme(false));
    plot.dataset.ready = "yes";
  }
  const paint = (print) => plots.forEach((plot) => Plotly.relayout(plot, theme(print)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(false));
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
})();
