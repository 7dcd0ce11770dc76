"use strict";
// What the page shows, and what the reader does to it.
let runs = JSON.parse(document.getElementById("data").textContent); // of every run, what search/report/page_data.py tells the script
const plot = document.getElementById("plot");
const narrow = window.matchMedia("(max-width: 860px)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let cost = runs?.[0].main;
let against = "trials";
let at = 0; // the run of the chosen trial
let data = null; // and what is known of it
let chosen = null;
let pinned = null; // the trial that the chosen one is compared with: its run and its number
let picked = false; // by the reader: else the best one is shown, whichever it is by now

function draw() {
  drawFront();
  drawAlong();
  drawProgress();
  drawSensitivity();
}

// Scrolls the table alone, never the page.
function reveal(row, box) {
  const above = row.offsetTop - box.querySelector("thead").offsetHeight < box.scrollTop;
  const below = row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight;
  if (above || below) box.scrollTop = row.offsetTop - box.clientHeight / 2;
}

function markRow(revealed) {
  for (const row of document.querySelectorAll("#rows tr[data-number]")) {
    const isChosen = Number(row.dataset.number) === chosen && Number(row.dataset.run) === at;
    row.classList.toggle("chosen", isChosen);
    row.querySelector("button").setAttribute("aria-pressed", isChosen);
    if (isChosen && revealed) reveal(row, row.closest(".scroll"));
  }
}

// With the shift key the trial that was chosen before stays, to be compared with.
function pick(place, number, comparing = false) {
  picked = true;
  if (comparing && !(place === at && number === chosen)) pinned = { at, number: chosen };
  document.getElementById("copied").textContent = "";
  const other = place !== at;
  show(place, number, true);
  if (other) {
    drawAlong();
    drawSensitivity();
  }
  markPlots();
}

// Only what lies over the points: they themselves stay as they are.
function markPlots() {
  Plotly.relayout(plot, { shapes: shapes() });
  Plotly.relayout(document.getElementById("along"), { shapes: alongShapes() });
}

// All but the plots.
function show(place, number, revealed) {
  [at, data, chosen] = [place, runs[place], number];
  const title = `Allocation of ${name(data, number).replace("Trial", "trial")}`;
  document.getElementById("allocation-title").textContent = runs.length > 1 ? `${title} · ${data.name}` : title;
  document.getElementById("command").textContent = data.command + number;
  for (const of of document.querySelectorAll("h2 .of")) of.textContent = runs.length > 1 ? ` · ${data.name}` : "";
  const button = document.getElementById("pin");
  button.textContent = pinned ? `Stop comparing with ${pinnedName()}` : "Compare with another";
  button.setAttribute("aria-pressed", pinned !== null);
  drawFacts();
  drawSizes(data.points[number]);
  markRow(revealed);
}

// The best trial of the first run that has one.
function best() {
  const place = runs.findIndex((run) => run.chosen !== null);
  return [place, runs[place].chosen];
}

function pin() {
  pinned = pinned ? null : { at, number: chosen };
  show(at, chosen, false);
  markPlots();
}

function pickRow(row, comparing = false) {
  if (row?.dataset.number) pick(Number(row.dataset.run), Number(row.dataset.number), comparing);
}

function step(event) {
  const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  let row = way && event.target.closest("tr")[way];
  while (row && !row.dataset.number) row = row[way]; // the heading of a run
  if (!row) return;
  event.preventDefault();
  row.querySelector("button").focus();
  pickRow(row);
}

function onChange(group, changed) {
  for (const input of document.querySelectorAll(`input[name=${group}]`)) input.addEventListener("change", () => changed(input.value));
}

function begin() {
  show(...best(), true);
  draw();
  plot.on("plotly_click", ({ points: [{ data: { meta }, customdata }], event }) => {
    if (customdata in runs[meta].points) pick(meta, customdata, event.shiftKey);
  });
  document.getElementById("along").on("plotly_click", ({ points, event }) => pick(at, points[0].customdata[0], event.shiftKey));
  document.getElementById("rows").addEventListener("click", (event) => pickRow(event.target.closest("tr"), event.shiftKey));
  document.getElementById("rows").addEventListener("keydown", step);
  document.getElementById("pin").addEventListener("click", pin);
  document.getElementById("copy").addEventListener("click", copy);
  document.getElementById("save-allocation").addEventListener("click", saveAllocation);
  document.getElementById("save-table").addEventListener("click", () => save("trials.csv", "text/csv", data.csv));
  onChange("against", (value) => { against = value; drawProgress(); });
  onChange("cost", (value) => { cost = value; drawFront(); });
  onChange("share", (value) => { share = value; drawSensitivity(); });
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
}

if (runs) begin();
