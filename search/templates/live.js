"use strict";
// Asks the server for new content, and shows it with what page.js draws by.
const EVERY = 2000; // milliseconds
let tag = null;

// Whatever the page holds is replaced but what the reader did with it: what is open, focused, chosen and zoomed stays.
function replaceParts(parts) {
  const opened = new Map([...document.querySelectorAll("details[id]")].map(({ id, open }) => [id, open]));
  const focused = document.activeElement?.closest("tr[data-number]")?.dataset.number;
  for (const [id, html] of Object.entries(parts)) {
    const part = document.getElementById(id);
    if (part) part.innerHTML = html;
  }
  for (const [id, open] of opened) {
    const details = document.getElementById(id);
    if (details) details.open = open;
  }
  if (focused) document.querySelector(`tr[data-number="${focused}"] button`)?.focus({ preventScroll: true });
}

function update(content) {
  if (!data !== !content.data) {
    location.reload(); // the first trial has finished
    return;
  }
  data = content.data;
  replaceParts(content.parts);
  if (data && !(pinned in data.points)) pinned = null;
  if (data) show(picked && chosen in data.points ? chosen : data.chosen, false);
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
