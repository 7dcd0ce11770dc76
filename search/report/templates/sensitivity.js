"use strict";
// The heat map of what every site costs by itself, from the run's profile: rows are kinds of sites, columns the blocks.
const DECADES = 6; // at most so many have a colour of their own
let share = "50"; // percent of the site that is kept

function drawSensitivity() {
  document.getElementById("sensitivity-section").hidden = !data.sensitivity;
  if (!data.sensitivity) return;
  const { grids, conditions } = data.sensitivity;
  const colour = colours();
  const blocks = Object.keys(grids[share]);
  const columns = [...new Set(Object.values(grids[share]).flatMap(Object.keys))];
  const errors = columns.map((column) => blocks.map((block) => grids[share][block][column] ?? null));
  const scale = decades(Object.values(grids));
  const place = document.getElementById("sensitivity");
  place.style.height = `${110 + 30 * columns.length}px`;
  document.getElementById("conditions").textContent = conditions;
  Plotly.react(place, [{
    type: "heatmap", x: blocks, y: columns, xgap: 1, ygap: 1, zmin: scale[0], zmax: scale.at(-1),
    z: errors.map((row) => row.map((error) => (error === null ? null : Math.log10(Math.max(error, 10 ** scale[0]))))),
    customdata: errors, text: errors.map((row) => row.map(short)), texttemplate: place.clientWidth > 50 * blocks.length ? "%{text}" : "",
    hovertemplate: `block %{x}, %{y}, ${share} % kept: %{customdata:.3g} nats<extra></extra>`,
    colorscale: [[0, colour("page")], [1, colour("baseline")]],
    colorbar: { title: { text: "nats lost", side: "right" }, thickness: 10, outlinewidth: 0, tickvals: scale, ticktext: scale.map((power) => `1e${power}`) },
  }], {
    ...basicLayout(colour, {
      xaxis: { type: "category", title: { text: "block" }, showgrid: false, fixedrange: true },
      yaxis: { type: "category", autorange: "reversed", showgrid: false, fixedrange: true },
    }),
    margin: { l: 40, r: 10, t: 10, b: 40 },
  }, { ...options, displayModeBar: false });
}

// Powers of ten around all errors, so that the colours of the shares can be compared.
function decades(grids) {
  const found = grids.flatMap((grid) => Object.values(grid).flatMap(Object.values)).filter((error) => error > 0);
  const high = Math.ceil(Math.log10(Math.max(...found, 1e-12)));
  const low = Math.max(Math.floor(Math.log10(Math.min(...found, 1))), high - DECADES);
  return Array.from({ length: Math.max(high - low, 1) + 1 }, (_, at) => low + at);
}

function short(error) {
  if (error === null) return "";
  return error === 0 || error >= 0.01 ? error.toPrecision(2) : error.toExponential(0);
}
