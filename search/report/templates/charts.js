"use strict";
// What the front keeps of every layer, how the searches went, and what all plots look like.

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

// The points of the front from the cheapest.
function along() {
  return data.figures[data.main].traces.front.customdata;
}

// Rows are the sites in the model's order, columns the points of the front; a strong colour is a strong cut.
function drawAlong() {
  const colour = colours();
  const numbers = along();
  const used = new Set(numbers.flatMap((number) => data.spaces[data.points[number].space] ?? []));
  const shown = data.sites.map((_, index) => index).filter((index) => used.has(index) || !used.size);
  const size = (point, index) => (isLeftOut(point, data.sites[index]) ? 0 : point.sizes[index]);
  const sizes = (index) => numbers.map((number) => size(data.points[number], index));
  const names = shown.map((index) => data.sites[index].name);
  const every = Math.ceil(numbers.length / (narrow.matches ? 8 : 16)); // points of a long front have no room for a text each
  const ticks = numbers.map((_, at) => at).filter((at) => at % every === 0);
  const place = document.getElementById("along");
  place.style.height = `${Math.max(220, 90 + 15 * names.length)}px`;
  const map = {
    type: "heatmap", x: numbers.map((_, at) => at), y: names, xgap: numbers.length > 60 ? 0 : 1, ygap: 1, zmin: 0, zmax: 100,
    z: shown.map((index) => sizes(index).map((size) => 100 * size / data.sites[index].dense)),
    customdata: shown.map((index) => sizes(index).map((size, at) => [numbers[at], size, data.sites[index].dense])),
    hovertemplate: "trial %{customdata[0]}, %{y}: %{customdata[1]} of %{customdata[2]} (%{z:.0f} %)<extra></extra>",
    colorscale: [[0, colour("front")], [1, colour("page")]],
    colorbar: { title: { text: "kept, %", side: "right" }, thickness: 10, outlinewidth: 0 },
  };
  Plotly.react(place, [map], {
    ...basicLayout(colour, {
      xaxis: {
        title: { text: `points of the front: ${data.costs[data.main]} kept` }, tickangle: -60, showgrid: false, fixedrange: true,
        tickvals: ticks, ticktext: ticks.map((at) => data.points[numbers[at]][`${data.main}_kept`].split("\u00a0")[0] + " %"),
      },
      yaxis: { autorange: "reversed", showgrid: false, fixedrange: true, tickfont: { size: 10 } },
    }),
    margin: { l: 40, r: 10, t: 10, b: 40 }, shapes: alongShapes(),
  }, { ...options, displayModeBar: false });
}

function alongShapes() {
  const at = along().indexOf(chosen);
  const shape = { type: "rect", x0: at - 0.5, x1: at + 0.5, yref: "paper", y0: 0, y1: 1, line: { color: colours()("chosen"), width: 2 } };
  return at < 0 ? [] : [shape];
}

// Hypervolume, and on an axis of its own the best error, of every run.
function drawProgress() {
  const colour = colours();
  const alone = runs.length === 1;
  const lines = runs.flatMap((run, place) => {
    const line = { type: "scatter", mode: "lines", x: run.progress[against] };
    const look = { shape: "hv", width: 2 };
    const shade = own(place, colour);
    return [
      { ...line, y: run.progress.hypervolume, name: alone ? "hypervolume" : plain(run.name), line: { ...look, color: shade("front") } },
      { ...line, y: run.progress.best, name: alone ? "best error under the target (%)" : `${plain(run.name)}, best error`, yaxis: "y2",
        showlegend: alone, line: { ...look, dash: alone ? "solid" : "dot", color: shade("baseline") } },
    ];
  });
  Plotly.react(document.getElementById("progress"), lines, {
    ...basicLayout(colour, {
      xaxis: { title: { text: against === "hours" ? "hours since the first trial began" : "finished trials" } },
      yaxis: { title: { text: "hypervolume" }, color: colour(alone ? "front" : "ink") },
      yaxis2: { title: { text: alone ? "" : "best error (%), dotted" }, overlaying: "y", side: "right", showgrid: false, tickformat: ".2f",
        color: colour(alone ? "baseline" : "ink") },
    }),
    margin: { l: 50, r: 50, t: 30, b: 40 }, uirevision: against, hovermode: "x unified",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
  }, { ...options, displayModeBar: false });
}
