"use strict";
// Asks the server for new content, and shows it as page.js does.
const EVERY = 2000; // milliseconds
let tag = null;

// Whatever the page holds is replaced but what the reader did with it: what is open, focused, chosen and zoomed stays.
function replaceParts(parts) {
  const opened = new Map([...document.querySelectorAll("details[id]")].map(({ id, open }) => [id, open]));
  const focused = document.activeElement?.closest("tr[data-number]")?.dataset;
  for (const [id, html] of Object.entries(parts)) {
    const part = document.getElementById(id);
    if (part) part.innerHTML = html;
  }
  for (const [id, open] of opened) {
    const details = document.getElementById(id);
    if (details) details.open = open;
  }
  const again = focused && `tr[data-run="${focused.run}"][data-number="${focused.number}"] button`;
  if (again) document.querySelector(again)?.focus({ preventScroll: true });
}

function update(content) {
  if (runs?.length !== content.data?.length) {
    location.reload(); // the first trial has finished, or another run can be read
    return;
  }
  runs = content.data;
  replaceParts(content.parts);
  if (!runs) return;
  if (pinned && !(pinned.number in runs[pinned.at].points)) pinned = null;
  show(...(picked && chosen in runs[at].points ? [at, chosen] : best()), false);
  draw();
}

async function refresh() {
  let answers = true;
  try {
    const answer = await fetch("content.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      update(await answer.json());
    }
    answers = answer.status === 200 || answer.status === 304;
  } catch {
    answers = false;
  }
  document.getElementById("lost").hidden = answers;
  setTimeout(refresh, EVERY);
}

setTimeout(refresh, EVERY);
