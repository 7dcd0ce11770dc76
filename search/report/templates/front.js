"use strict";
// Draws error against one cost: alone with the names of its baselines, several runs each in a colour and with a symbol of its own.
const SYMBOLS = ["circle", "square", "triangle-up", "pentagon", "hexagon", "cross"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const OWN = new Set(["trial", "front", "baseline", "dense"]);

function own(place, colour) {
  return (key) => colour(runs.length > 1 && OWN.has(key) ? `run${place % SYMBOLS.length}` : key);
}

// Plotly reads a few tags in its texts; a label's are shown as they are.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function hover(run, number) {
  const of = runs.length > 1 ? `<b>${plain(run.name)}</b><br>` : "";
  if (number === null) return `${of}dense`;
  const stopped = run.stopped[number];
  if (stopped) return `${of}<b>Trial ${number}, stopped at step ${stopped.rung}</b><br>${run.costs[run.main]} kept: ${stopped[`${run.main}_kept`]}<br>${plain(stopped.reason)}`;
  const lines = facts(run, number).slice(0, -2).map(([term, text]) => `${term}: ${text}`);
  return of + [`<b>${plain(name(run, number))}</b>`, ...lines].join("<br>");
}

function traces(run, place) {
  const figure = run.figures[cost];
  const alone = runs.length === 1;
  const small = narrow.matches;
  const colour = own(place, colours());
  const symbol = SYMBOLS[place % SYMBOLS.length];
  const looks = {
    stopped: { name: "stopped early", mode: "markers", showlegend: alone && figure.traces.stopped.x.length > 0,
      marker: { symbol: "x-thin", size: 6, opacity: alone ? 0.7 : 0.4, line: { color: colour("trial"), width: 1.2 } } },
    trials: { name: "trials", mode: "markers", showlegend: alone,
      marker: { symbol, color: colour("trial"), size: alone ? 6 : 5, opacity: alone ? 0.65 : 0.3 } },
    intervals: { name: "95 % intervals", mode: "markers", hoverinfo: "skip", showlegend: alone && figure.traces.intervals.x.length > 0,
      marker: { symbol: "line-ns", size: 6, line: { color: colour("front"), width: 1 } },
      error_y: { ...figure.traces.intervals.error_y, color: colour("front"), thickness: 1, width: 3 } },
    line: { name: alone ? (small ? "front" : figure.front) : plain(run.name), mode: alone ? "lines" : "lines+markers", hoverinfo: "skip",
      marker: { symbol, color: colour("front"), size: 8 }, line: { color: colour("front"), width: 2, dash: DASHES[place % DASHES.length] } },
    front: { mode: "markers", showlegend: false, marker: { symbol, color: colour("front"), size: 8 } },
    tied: { name: "≈ not told apart from the best", mode: "markers", showlegend: alone && figure.traces.tied.x.length > 0,
      marker: { symbol: `${symbol}-open`, color: colour("front"), size: 14, line: { width: 1.5 } } },
    baselines: { name: "baselines", mode: alone ? "markers+text" : "markers", showlegend: alone && figure.traces.baselines.x.length > 0,
      ...figure.labels[small ? "narrow" : "wide"], textfont: { color: colour("baseline"), size: small ? 10 : 12 },
      marker: { symbol: "diamond", color: colour("panel"), size: 9, line: { color: colour("baseline"), width: 2 } } },
    dense: { name: small ? "dense" : figure.reference, mode: "markers", showlegend: alone,
      marker: { symbol: "star", color: colour("dense"), size: 14 } },
  };
  return Object.entries(looks).map(([key, look]) => ({
    type: "scatter", meta: place, hovertemplate: "%{hovertext}<extra></extra>", ...figure.traces[key],
    hovertext: figure.traces[key].customdata.map((number) => hover(run, number)), ...look,
  }));
}

// The targets of all runs, each once, with their texts above one another.
function limits() {
  const found = new Map(runs.flatMap((run) => run.figures[cost].limits).map((limit) => [`${limit.x} ${limit.text}`, limit]));
  return [...found.values()].map((limit, at) => ({ ...limit, y: 0.01 + 0.06 * at }));
}

// The bands of the targets, the dense errors, and rings around the chosen trial and the one that it is compared with.
function shapes() {
  const colour = colours();
  const whole = { layer: "below", yref: "paper", y0: 0, y1: 1 };
  const bands = limits().flatMap(({ x }) => [
    { ...whole, type: "rect", x0: Math.min(0, span("x")[0]), x1: x, fillcolor: colour("target"), opacity: 0.1, line: { width: 0 } },
    { ...whole, type: "line", x0: x, x1: x, line: { color: colour("target"), width: 1.5 } },
  ]);
  const dense = runs.map((run, place) => ({
    type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: run.figures[cost].traces.dense.y[0],
    y1: run.figures[cost].traces.dense.y[0], line: { color: own(place, colour)("dense"), width: 1, dash: "dot" },
  }));
  return [...bands, ...dense, ...ring(at, chosen, colour("chosen")), ...(pinned ? ring(pinned.at, pinned.number, colour("soft")) : [])];
}

function ring(place, number, color) {
  const { x, y, customdata } = runs[place].figures[cost].traces.trials;
  const index = customdata.indexOf(number);
  if (index < 0) return []; // this cost was not measured
  return [{ type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x[index], yanchor: y[index],
    x0: -9, x1: 9, y0: -9, y1: 9, line: { color, width: 2.5 } }];
}

function span(axis) {
  const ranges = runs.map((run) => run.figures[cost].ranges[axis]);
  const [low, high] = [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))];
  return axis === "y" && runs.length > 1 ? [low - 0.08 * (high - low), high] : [low, high]; // room for the targets' texts
}

function axisTitle() {
  const titles = new Set(runs.map((run) => run.figures[cost].title));
  return titles.size === 1 ? [...titles][0] : `${data.costs[cost]} kept (% of each run's own dense model)`;
}

function errorTitle() {
  const titles = new Set(runs.map((run) => run.figures[cost].errors));
  return titles.size > 1 || narrow.matches ? "top-1 error (%)" : [...titles][0];
}

function drawFront() {
  const colour = colours();
  const base = basicLayout(colour, {
    xaxis: { title: { text: axisTitle() }, range: span("x") },
    yaxis: { title: { text: errorTitle() }, range: span("y") },
  });
  return Plotly.react(plot, runs.flatMap(traces), {
    ...base, margin: { l: 50, r: 34, t: 28, b: 44 }, hovermode: "closest", uirevision: cost, shapes: shapes(),
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    annotations: limits().map(({ x, y, side, text }) => ({
      x, y, yref: "paper", text, showarrow: false, xanchor: side, yanchor: "bottom", font: { color: colour("target") },
    })),
  }, options);
}
