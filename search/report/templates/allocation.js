"use strict";
// Shows one trial: its figures, its sizes by block and site, and where another one differs from it.
const kinds = {
  query_key: "query/key width per head", value_output: "value/output width per head", ffn_hidden: "FFN neurons", rank: "rank",
  heads: "heads", rows: "whole rows beside the low rank", inputs: "inputs of the branch",
  branch: "whether the branch is there", tokens: "patch tokens that leave the attention of the block",
};

// Term -> text, of one trial.
function facts(run, number) {
  const point = run.points[number];
  return [
    ...Object.entries(run.costs).map(([cost, name]) => [`${name} kept`, `${point[`${cost}_kept`]}, ${point[cost]}`]),
    [`error as built (${run.images_before})`, point.before],
    ["error fine-tuned, search split", point.error],
    ...(point.expected === "–" ? [] : [["expected error (95 %)", point.expected]]),
    ["error / dense error", `${point.ratio} of ${run.dense}`],
    [`KL to dense as built (${run.images_before})`, point.kl_before],
    ["KL to dense, fine-tuned", point.kl],
    ["time", point.time],
  ];
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function name(run, number) {
  const label = run.points[number].label;
  return `Trial ${number}${label ? `, ${label}` : ""}`;
}

// The compared trial, with its run where that is another one.
function pinnedName() {
  return `trial ${pinned.number}${pinned.at === at ? "" : ` of ${runs[pinned.at].name}`}`;
}

// The compared trial's size of a site; undefined where it has no such site.
function pinnedSize(site) {
  if (!pinned) return undefined;
  const { sites, points } = runs[pinned.at];
  return points[pinned.number].sizes[sites.findIndex((each) => each.name === site.name)];
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
    box.title += `; ${pinnedName()}: ${other}`;
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

// Whether a trial leaves the branch of a site out: then its sizes mean nothing.
function isLeftOut(point, site) {
  const branch = (each) => each.column.split(".")[0];
  return data.sites.some((each, index) => each.kind === "branch" && each.block === site.block && branch(each) === branch(site)
    && point.sizes[index] === 0);
}

function leftOut(site) {
  const cell = element("td", "left out", "gone");
  cell.title = `${site.name}: the branch is left out; its mean output stays as a bias`;
  return cell;
}

// The sites of the trial's own space: a recipe may cut elsewhere than the search does. Tokens first: all else is of these.
function drawSizes(point) {
  const all = data.spaces[point.space] ?? data.sites.map((_, index) => index);
  const shown = all.filter((index) => data.sites[index].kind !== "branch");
  const columns = [...new Set(shown.map((index) => data.sites[index].column))];
  columns.sort((one, other) => (other === "tokens") - (one === "tokens"));
  const head = element("tr");
  head.append(element("th", "block"), ...columns.map((column) => heading(column, shown)));
  const rows = [...new Set(shown.map((index) => data.sites[index].block))].map((block) => {
    const row = element("tr");
    const first = element("th", block);
    first.scope = "row";
    row.append(first, ...columns.map((column) => {
      const index = shown.find((each) => data.sites[each].block === block && data.sites[each].column === column);
      if (index === undefined) return element("td");
      const site = data.sites[index];
      return isLeftOut(point, site) ? leftOut(site) : bar(site, point.sizes[index], pinnedSize(site));
    }));
    return row;
  });
  const table = document.getElementById("sizes");
  table.className = columns.length > 4 ? "many" : "";
  table.replaceChildren(element("thead"), element("tbody"));
  table.tHead.append(head);
  table.tBodies[0].append(...rows);
}

function drawFacts() {
  const others = pinned ? new Map(facts(runs[pinned.at], pinned.number)) : new Map();
  document.getElementById("facts").replaceChildren(...facts(data, chosen).map(([term, text]) => {
    const pair = element("div");
    pair.append(element("dt", term), element("dd", text));
    if (others.has(term)) pair.append(element("dd", `${pinnedName()}: ${others.get(term)}`, "other"));
    return pair;
  }));
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
