"use strict";
// Without this script the page is whole: tooltips are the browser's, tables stand in file order.

const tip = document.getElementById("tip");

function showTip(point) {
  tip.textContent = point.getAttribute("aria-label");
  tip.hidden = false;
  const at = point.querySelector(".marker").getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const left = Math.min(Math.max(at.left + at.width / 2 - tip.offsetWidth / 2, 8), width - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 10;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 0 ? above : at.bottom + 10) + window.scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}

// One tab stop per chart; the arrow keys walk along its points.
function walk(event, points) {
  const at = points.indexOf(event.currentTarget);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: points.length - 1 }[event.key];
  if (event.key === "Escape") hideTip();
  if (to === undefined || !points[to]) return;
  event.preventDefault();
  points[at].setAttribute("tabindex", "-1");
  points[to].setAttribute("tabindex", "0");
  points[to].focus();
}

for (const chart of document.querySelectorAll("svg.chart")) {
  const points = [...chart.querySelectorAll(".point")];
  chart.querySelectorAll("title").forEach((title) => title.remove());
  points.forEach((point, i) => {
    point.setAttribute("tabindex", i === 0 ? "0" : "-1");
    point.addEventListener("mouseenter", () => showTip(point));
    point.addEventListener("mouseleave", hideTip);
    point.addEventListener("focus", () => showTip(point));
    point.addEventListener("blur", hideTip);
    point.addEventListener("keydown", (event) => walk(event, points));
  });
}

// Cells sort by data-sort where they have it, as numbers where all are numbers; empty ones always come last.
function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    return { row, key: cell.dataset.sort ?? cell.textContent.trim() };
  });
  const numeric = keyed.every(({ key }) => key === "" || !Number.isNaN(Number(key)));
  keyed.sort((a, b) => {
    if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
    return direction * (numeric ? a.key - b.key : a.key.localeCompare(b.key, document.documentElement.lang));
  });
  body.append(...keyed.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sortTable(table, column, up ? 1 : -1);
    });
  });
}

const plain = (text) => text.normalize("NFD").replace(/\p{Diacritic}/gu, "").toLowerCase();

for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const told = input.closest(".filter").querySelector("output");
  input.addEventListener("input", () => {
    const words = plain(input.value).split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => plain(row.textContent).includes(word));
    const shown = rows.filter((row) => !row.hidden).length;
    told.textContent = words.length ? told.dataset.told.replace("{shown}", shown).replace("{all}", rows.length) : "";
  });
}

let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((details) => (details.open = true));
});
window.addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));

// One question at a time, of the task and direction that are chosen; without this script they stand in lists that open.
function browse(browser) {
  const groups = [...browser.querySelectorAll(".changed")];
  const task = browser.querySelector("select");
  const buttons = [...browser.querySelectorAll("[data-step]")];
  const told = browser.querySelector("output");
  let shown = [];
  let at = 0;
  function step(by) {
    at = shown.length ? (at + by + shown.length) % shown.length : 0;
    shown.forEach((example, i) => (example.hidden = i !== at));
    buttons.forEach((button) => (button.disabled = shown.length < 2));
    const text = told.dataset.text.replace("{at}", shown.length ? at + 1 : 0);
    told.textContent = text.replace("{shown}", shown.length);
  }
  function choose() {
    const way = browser.querySelector("input:checked").value;
    for (const group of groups) {
      group.hidden = group.dataset.task !== task.value || group.dataset.way !== way;
      if (!group.hidden) shown = [...group.querySelectorAll(".example")];
    }
    at = 0;
    step(0);
  }
  groups.forEach((group) => (group.open = true));
  browser.addEventListener("change", choose);
  buttons.forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
  browser.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select, input")) return;
    event.preventDefault();
    step(by);
  });
  choose();
}

document.querySelectorAll(".browser").forEach(browse);

document.documentElement.dataset.ready = "1";
