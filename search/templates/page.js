"use strict";
// Draws the front, and shows the allocation of the trial that is chosen in it or in the table.
let data = JSON.parse(document.getElementById("data").textContent);
const plot = document.getElementById("plot");
const narrow = window.matchMedia("(max-width: 860px)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const kinds = {
  query_key: "query/key width per head", value_output: "value/output width per head", ffn_hidden: "FFN neurons", rank: "rank",
  heads: "heads", rows: "whole rows beside the low rank", inputs: "inputs of the branch",
};
let cost = "macs";
let chosen = data?.chosen;
let against = "trials";
let pinned = null; // the trial that the chosen one is compared with
let picked = false; // by the reader: else the best one is shown, whichever it is by now

// Term -> text, of one trial.
function facts(point) {
  return [
    ["MACs kept", `${point.macs_kept}, ${point.macs}`],
    ["parameters kept", `${point.params_kept}, ${point.params}`],
    ["error before → after fine-tune", `${point.before} → ${point.error}`],
    ["error / dense error", `${point.ratio} of ${data.dense}`],
    ["KL to dense, before → after", point.kl],
    ["time", point.time],
  ];
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

// Plotly reads a few tags in its texts; a label's are shown as they are.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function name(number) {
  const label = data.points[number].label;
  return `Trial ${number}${label ? `, ${label}` : ""}`;
}

function hover(number) {
  if (number === null) return "dense";
  const stopped = data.stopped[number];
  if (stopped) return `<b>Trial ${number}, stopped at step ${stopped.rung}</b><br>MACs kept: ${stopped.macs_kept}<br>${plain(stopped.reason)}`;
  const lines = facts(data.points[number]).slice(0, 4).map(([term, text]) => `${term}: ${text}`);
  return [`<b>${plain(name(number))}</b>`, ...lines].join("<br>");
}

function traces(figure, colour) {
  const looks = {
    stopped: { name: "stopped early", mode: "markers", showlegend: figure.traces.stopped.x.length > 0,
      marker: { symbol: "x-thin", size: 6, opacity: 0.7, line: { color: colour("trial"), width: 1.2 } } },
    trials: { name: "trials", mode: "markers", marker: { color: colour("trial"), size: 6, opacity: 0.65 } },
    line: { name: narrow.matches ? "front" : figure.front, mode: "lines", line: { color: colour("front"), width: 2 }, hoverinfo: "skip" },
    front: { mode: "markers", showlegend: false, marker: { color: colour("front"), size: 8 } },
    baselines: {
      name: "baselines", mode: "markers+text", ...figure.labels[narrow.matches ? "narrow" : "wide"], textfont: { color: colour("baseline"), size: narrow.matches ? 10 : 12 },
      marker: { symbol: "diamond", color: colour("panel"), size: 9, line: { color: colour("baseline"), width: 2 } },
    },
    dense: { name: narrow.matches ? "dense" : figure.reference, mode: "markers", marker: { symbol: "star", color: colour("dense"), size: 14 } },
  };
  const drawn = Object.entries(looks).map(([key, look]) => ({
    type: "scatter", hovertemplate: "%{hovertext}<extra></extra>", ...figure.traces[key],
    hovertext: figure.traces[key].customdata.map(hover), ...look,
  }));
  return [...drawn, ring(figure, colour)];
}

function ring(figure, colour) {
  const { x, y, customdata } = figure.traces.trials;
  const at = [chosen, pinned].filter((number) => number !== null).map((number) => customdata.indexOf(number));
  return {
    type: "scatter", x: at.map((each) => x[each]), y: at.map((each) => y[each]), mode: "markers", showlegend: false, hoverinfo: "skip",
    marker: { symbol: ["circle-open", "circle-open-dot"], size: 17, color: [colour("chosen"), colour("soft")], line: { width: 2.5 } },
  };
}

function layout(figure, colour) {
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true };
  const line = { type: "line", layer: "below" };
  const limits = figure.limits.flatMap(({ x }) => [
    { type: "rect", layer: "below", x0: Math.min(0, figure.ranges.x[0]), x1: x, yref: "paper", y0: 0, y1: 1,
      fillcolor: colour("target"), opacity: 0.1, line: { width: 0 } },
    { ...line, x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colour("target"), width: 1.5 } },
  ]);
  const dense = figure.traces.dense.y[0];
  return {
    paper_bgcolor: colour("panel"), plot_bgcolor: colour("panel"),
    font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    margin: { l: 50, r: 34, t: 28, b: 44 },
    modebar: { orientation: "v", bgcolor: "transparent", color: colour("soft"), activecolor: colour("front") },
    xaxis: { ...axis, title: { text: figure.title }, range: figure.ranges.x },
    yaxis: { ...axis, title: { text: narrow.matches ? "top-1 error (%)" : "top-1 error on the search split (%)" }, range: figure.ranges.y },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
    hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("soft"), font: { color: colour("ink") } },
    uirevision: cost,
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    shapes: [...limits, { ...line, xref: "paper", x0: 0, x1: 1, y0: dense, y1: dense, line: { color: colour("dense"), width: 1, dash: "dot" } }],
    annotations: figure.limits.map(({ x, y, side, text }) => ({
      x, y, yref: "paper", text, showarrow: false, xanchor: side, yanchor: "bottom", font: { color: colour("target") },
    })),
  };
}

// Named one by one: Plotly's own set has a button that sends the data to its cloud.
const buttons = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"];
const options = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtons: [buttons] };

function colours() {
  const style = getComputedStyle(document.documentElement);
  return (key) => style.getPropertyValue(`--${key}`).trim();
}

function basicLayout(colour, axes) {
  const base = { gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true };
  return {
    paper_bgcolor: colour("panel"), plot_bgcolor: colour("panel"),
    font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("soft"), font: { color: colour("ink") } },
    modebar: { orientation: "v", bgcolor: "transparent", color: colour("soft"), activecolor: colour("front") },
    ...Object.fromEntries(Object.entries(axes).map(([name, axis]) => [name, { ...base, ...axis }])),
  };
}

function draw() {
  const colour = colours();
  const figure = data.figures[cost];
  drawAlong(colour);
  drawProgress(colour);
  return Plotly.react(plot, traces(figure, colour), layout(figure, colour), options);
}

// Rows are the sites in the model's order, columns the points of the front from the cheapest; a strong colour is a strong cut.
function drawAlong(colour) {
  const numbers = data.figures.macs.traces.front.customdata;
  const used = new Set(numbers.flatMap((number) => data.spaces[data.points[number].space] ?? []));
  const shown = data.sites.map((_, index) => index).filter((index) => used.has(index) || !used.size);
  const sizes = (index) => numbers.map((number) => data.points[number].sizes[index]);
  const names = shown.map((index) => data.sites[index].name);
  const place = document.getElementById("along");
  place.style.height = `${Math.max(220, 90 + 15 * names.length)}px`;
  const map = {
    type: "heatmap", x: numbers.map((_, at) => at), y: names, xgap: 1, ygap: 1, zmin: 0, zmax: 100,
    z: shown.map((index) => sizes(index).map((size) => 100 * size / data.sites[index].dense)),
    customdata: shown.map((index) => sizes(index).map((size, at) => [numbers[at], size, data.sites[index].dense])),
    hovertemplate: "trial %{customdata[0]}, %{y}: %{customdata[1]} of %{customdata[2]} (%{z:.0f} %)<extra></extra>",
    colorscale: [[0, colour("front")], [1, colour("page")]],
    colorbar: { title: { text: "kept, %", side: "right" }, thickness: 10, outlinewidth: 0 },
  };
  const at = numbers.indexOf(chosen);
  const ring = { type: "rect", x0: at - 0.5, x1: at + 0.5, yref: "paper", y0: 0, y1: 1, line: { color: colour("chosen"), width: 2 } };
  Plotly.react(place, [map], {
    ...basicLayout(colour, {
      xaxis: {
        title: { text: "points of the front: MACs kept" }, tickangle: -60, showgrid: false, fixedrange: true,
        tickvals: map.x, ticktext: numbers.map((number) => data.points[number].macs_kept.split("\u00a0")[0] + " %"), nticks: 12,
      },
      yaxis: { autorange: "reversed", showgrid: false, fixedrange: true, tickfont: { size: 10 } },
    }),
    margin: { l: 40, r: 10, t: 10, b: 40 }, shapes: at < 0 ? [] : [ring],
  }, { ...options, displayModeBar: false });
}

function drawProgress(colour) {
  const { hypervolume, best } = data.progress;
  const x = data.progress[against];
  const line = { type: "scatter", mode: "lines", x, line: { shape: "hv", width: 2 } };
  Plotly.react(document.getElementById("progress"), [
    { ...line, y: hypervolume, name: "hypervolume", line: { ...line.line, color: colour("front") } },
    { ...line, y: best, name: "best error under the target (%)", yaxis: "y2", line: { ...line.line, color: colour("baseline") } },
  ], {
    ...basicLayout(colour, {
      xaxis: { title: { text: against === "hours" ? "hours since the first trial began" : "finished trials" } },
      yaxis: { title: { text: "hypervolume" }, color: colour("front") },
      yaxis2: { overlaying: "y", side: "right", showgrid: false, color: colour("baseline") },
    }),
    margin: { l: 50, r: 50, t: 30, b: 40 }, uirevision: against, hovermode: "x unified",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
  }, { ...options, displayModeBar: false });
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function saveAllocation() {
  const { space, sizes } = data.points[chosen];
  const own = data.spaces[space] ?? data.sites.map((_, index) => index);
  const allocation = Object.fromEntries(own.map((index) => [data.sites[index].name, sizes[index]]));
  save(`allocation-${chosen}.json`, "application/json", `${JSON.stringify({ number: chosen, space, allocation }, null, 2)}\n`);
}

// The size of one site; a mark where the trial has it that is compared with.
function bar(site, size, other) {
  const cell = element("td");
  const box = element("div", "", size === site.dense ? "size dense" : "size");
  const track = element("div");
  const fill = element("i");
  fill.style.width = `${100 * size / site.dense}%`;
  track.append(fill);
  box.append(element("span", size), track);
  box.title = `${site.name}: ${size} of ${site.dense} (${(100 * size / site.dense).toFixed(0)} %)`;
  if (other !== undefined) {
    const mark = element("b");
    mark.style.left = `${100 * other / site.dense}%`;
    track.append(mark);
    box.append(element("small", size === other ? "=" : `${size > other ? "+" : "−"}${Math.abs(size - other)}`));
    box.title += `; trial ${pinned}: ${other}`;
  }
  cell.append(box);
  return cell;
}

// Column -> its heading: the short name, what its size counts, and the dense size where all blocks share it.
function heading(column, shown) {
  const sites = shown.map((index) => data.sites[index]).filter((site) => site.column === column);
  const dense = new Set(sites.map((site) => site.dense));
  const made = element("th", column.split(".").pop());
  made.scope = "col";
  made.title = `${column}: ${kinds[sites[0].kind]}`;
  if (dense.size === 1) made.append(element("br"), element("small", `of ${sites[0].dense}`));
  return made;
}

// The sites of the trial's own space: a recipe may cut elsewhere than the search does.
function drawSizes(point) {
  const shown = data.spaces[point.space] ?? data.sites.map((_, index) => index);
  const columns = [...new Set(shown.map((index) => data.sites[index].column))];
  const head = element("tr");
  head.append(element("th", "block"), ...columns.map((column) => heading(column, shown)));
  const rows = [...new Set(shown.map((index) => data.sites[index].block))].map((block) => {
    const row = element("tr");
    const first = element("th", block);
    first.scope = "row";
    row.append(first, ...columns.map((column) => {
      const index = shown.find((each) => data.sites[each].block === block && data.sites[each].column === column);
      const other = pinned === null ? undefined : data.points[pinned].sizes[index];
      return index === undefined ? element("td") : bar(data.sites[index], point.sizes[index], other);
    }));
    return row;
  });
  const table = document.getElementById("sizes");
  table.className = columns.length > 4 ? "many" : "";
  table.replaceChildren(element("thead"), element("tbody"));
  table.tHead.append(head);
  table.tBodies[0].append(...rows);
}

function drawFacts(point) {
  const others = pinned === null ? [] : facts(data.points[pinned]);
  document.getElementById("facts").replaceChildren(...facts(point).map(([term, text], at) => {
    const pair = element("div");
    pair.append(element("dt", term), element("dd", text));
    if (others.length) pair.append(element("dd", `trial ${pinned}: ${others[at][1]}`, "other"));
    return pair;
  }));
}

// Scrolls the table alone, never the page.
function reveal(row, box) {
  const above = row.offsetTop - box.querySelector("thead").offsetHeight < box.scrollTop;
  const below = row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight;
  if (above || below) box.scrollTop = row.offsetTop - box.clientHeight / 2;
}

function markRow(revealed) {
  for (const row of document.querySelectorAll("#table tbody tr")) {
    const isChosen = Number(row.dataset.number) === chosen;
    row.classList.toggle("chosen", isChosen);
    row.querySelector("button").setAttribute("aria-pressed", isChosen);
    if (isChosen && revealed) reveal(row, row.closest(".scroll"));
  }
}

// With the shift key the trial that was chosen before stays, to be compared with.
function pick(number, comparing = false) {
  picked = true;
  if (comparing && number !== chosen) pinned = chosen;
  document.getElementById("copied").textContent = "";
  return show(number, true);
}

function show(number, revealed) {
  chosen = number;
  const point = data.points[number];
  document.getElementById("allocation-title").textContent = `Allocation of ${name(number).replace("Trial", "trial")}`;
  document.getElementById("command").textContent = data.command + number;
  const button = document.getElementById("pin");
  button.textContent = pinned === null ? "Compare with another" : `Stop comparing with trial ${pinned}`;
  button.setAttribute("aria-pressed", pinned !== null);
  drawFacts(point);
  drawSizes(point);
  markRow(revealed);
  return draw();
}

function pin() {
  pinned = pinned === null ? chosen : null;
  show(chosen, false);
}

async function copy() {
  const button = document.getElementById("copy");
  const command = document.getElementById("command");
  let copied = "Copied";
  try {
    await navigator.clipboard.writeText(command.textContent);
  } catch {
    // A page opened as a file may not reach the clipboard: select the command for the reader.
    getSelection().selectAllChildren(command);
    copied = "Selected: press Ctrl+C";
  }
  document.getElementById("copied").textContent = button.textContent = copied;
  setTimeout(() => { button.textContent = "Copy export command"; }, 2000);
}

function step(event) {
  const to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const row = to && event.target.closest("tr")[to];
  if (!row) return;
  event.preventDefault();
  row.querySelector("button").focus();
  pick(Number(row.dataset.number));
}

function begin() {
  show(chosen, true);
  plot.on("plotly_click", ({ points, event }) => {
    if (points[0].customdata in data.points) pick(points[0].customdata, event.shiftKey);
  });
  document.getElementById("rows").addEventListener("click", (event) => {
    pick(Number(event.target.closest("tr").dataset.number), event.shiftKey);
  });
  document.getElementById("pin").addEventListener("click", pin);
  document.getElementById("rows").addEventListener("keydown", step);
  document.getElementById("along").on("plotly_click", ({ points, event }) => pick(points[0].customdata[0], event.shiftKey));
  document.getElementById("copy").addEventListener("click", copy);
  document.getElementById("save-allocation").addEventListener("click", saveAllocation);
  document.getElementById("save-table").addEventListener("click", () => save("trials.csv", "text/csv", data.csv));
  for (const input of document.querySelectorAll("input[name=against]")) {
    input.addEventListener("change", () => { against = input.value; drawProgress(colours()); });
  }
  for (const input of document.querySelectorAll("input[name=cost]")) {
    input.addEventListener("change", () => { cost = input.value; draw(); });
  }
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
}

if (data) begin();
