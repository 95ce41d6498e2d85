"use strict";
/* What the pages of finepref have in common: elements, the list of records, keys, dark and light. */
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const records = data.records;
const ROW = 56;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function option(value, text) {
  const made = make("option", "", text);
  made.value = value;
  return made;
}

function headOf(record) {
  const head = make("div", "");
  head.id = "head";
  head.append(make("h2", "", record.id || "a row without id"), make("span", "soft", record.at));
  return head;
}

function turnsOf(record) {
  return record.turns.map(([role, text]) => {
    const turn = make("div", "turn");
    turn.append(make("b", "", role), make("span", "", text));
    return turn;
  });
}

/* The rows of the list that can be seen; fill(row, i) gives row i its content. */
function drawRows(count, at, fill) {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(count, first + Math.ceil(list.clientHeight / ROW) + 9);
  const rows = $("rows");
  rows.textContent = "";
  for (let i = first; i < last; i++) {
    const row = make("div", i === at ? "row here" : "row");
    row.id = `row-${i}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(i === at));
    row.style.top = `${i * ROW}px`;
    row.index = i;
    fill(row, i);
    rows.append(row);
  }
  list.setAttribute("aria-activedescendant", `row-${at}`);
}

/* The second line of a row: the beginning of a record, and what is told beside it. */
function excerptOf(record, told) {
  const line = make("div"), turn = record.turns[record.turns.length - 1];
  const text = (turn ? turn[1] : record.responses[0]?.text ?? "").slice(0, 120).replace(/\s+/g, " ");
  line.append(make("span", "text", text), make("span", "soft", told));
  return line;
}

/* Scroll the list so that row i can be seen. */
function reveal(i) {
  const list = $("list"), top = i * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function textOf(record) {
  return record.low ??= [record.id, record.at, ...record.turns.map(turn => turn[1]), ...record.responses.map(each => each.text)].join("\n").toLowerCase();
}

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").textContent = dark ? "Light" : "Dark";
}

const isDark = () => document.documentElement.classList.contains("dark");

/* What all pages do: title, the list of keys, keys and clicks, dark or light as the system has it or #theme= says.
   keys: key -> what it does, besides t and ?; draw: draws the list; go: shows the record of a row. */
function usual({ keys, help, draw, go }) {
  const ask = () => $("help").open ? $("help").close() : $("help").showModal();
  const acts = { ...keys, t: () => theme(!isDark()), "?": ask };
  document.addEventListener("keydown", event => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest("input, select, textarea");
    if (field) { if (event.key === "Escape") field.blur(); return; }
    if ($("help").open && event.key !== "?") return;
    const act = acts[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  for (const [names, what] of Object.entries({ ...help, "t": "dark or light", "?": "this list" })) {
    const row = make("tr"), cell = make("td");
    for (const key of names.split("  ")) cell.append(make("kbd", "", key), " ");
    row.append(cell, make("td", "", what));
    document.querySelector("#help table").append(row);
  }
  $("list").addEventListener("scroll", draw);
  $("rows").addEventListener("click", event => { const row = event.target.closest(".row"); if (row) go(row.index); });
  $("theme").addEventListener("click", () => theme(!isDark()));
  $("ask").addEventListener("click", ask);
  $("close").addEventListener("click", () => $("help").close());
  window.addEventListener("resize", draw);
  $("title").textContent = data.title;
  $("about").textContent = data.about.join(" \u00b7 ");
  const asked = new URLSearchParams(location.hash.slice(1));
  theme(asked.has("theme") ? asked.get("theme") === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
}
