// What a page can do beside being read: tables sort and are saved as CSV, answers are searched. It asks no network.
"use strict";

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text; // as text, whatever a model wrote
  return element;
}

// --- tables: a click on a head sorts rows by it; in a table of arms, a click on a measure sorts the arms by it

function number(text) {
  const found = text.replace(/,/g, "").replace("−", "-").match(/-?\d+(\.\d+)?/);
  if (!found) return NaN;
  const power = text.match(/×\s*10([⁻⁰¹²³⁴-⁹]+)/);
  const exponent = power ? Number([...power[1]].map((c) => (c === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c))).join("")) : 0;
  return Number(found[0]) * 10 ** exponent;
}

function order(cells, down) {
  // The places of the cells, sorted: numbers by size, words by the alphabet, what is missing last.
  const texts = cells.map((cell) => (cell.dataset.value ?? cell.firstChild?.textContent ?? "").trim());
  const numbers = texts.map(number);
  const words = texts.every((text, i) => Number.isNaN(numbers[i]) || !/^[-−+<>]?\s*[\d.]/.test(text));
  const missing = (i) => (words ? !texts[i] : Number.isNaN(numbers[i]));
  const compare = (i, j) => (words ? texts[i].localeCompare(texts[j]) : numbers[i] - numbers[j]);
  return [...cells.keys()].sort((i, j) => missing(i) - missing(j) || (down ? compare(j, i) : compare(i, j)));
}

function sortable(head, sort) {
  const button = make("button", "sort");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending"; // the largest first
    head.closest("table").querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sort(down);
  });
}

function sortRows(table, column, down) {
  for (const body of table.tBodies) {
    const rows = [...body.rows];
    for (const i of order(rows.map((row) => row.cells[column]), down)) body.append(rows[i]);
  }
}

function sortColumns(table, row, down) {
  const places = order([...row.cells].slice(1), down);
  for (const other of table.rows) {
    const cells = [...other.cells].slice(1);
    if (cells.length === places.length) other.append(...places.map((i) => cells[i]));
  }
}

// --- data to download

function save(name, text, kind) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csv(rows) {
  // A cell that a spreadsheet would take for a formula gets a quote in front.
  const cell = (text) => `"${String(text).replace(/^(?=[=+@\t\r]|-(?![\d.]))/, "'").replace(/"/g, '""')}"`;
  return "\uFEFF" + rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function saver(label, rows, name) {
  const button = make("button", "save", label);
  button.type = "button";
  button.addEventListener("click", () => save(name, csv(rows()), "text/csv"));
  return button;
}

function tableRows(table) {
  const words = (cell) => [...cell.querySelectorAll("small")].reduce((text, small) => text.replace(small.textContent, ` (${small.textContent})`), cell.textContent);
  return [...table.rows].map((row) => [...row.cells].map((cell) => words(cell).replace(/\s+/g, " ").trim()));
}

document.querySelectorAll("table[data-sort]").forEach((table, index) => {
  if (table.dataset.sort === "columns") {
    for (const head of table.querySelectorAll("th[scope=row]")) sortable(head, (down) => sortColumns(table, head.parentNode, down));
  } else {
    [...table.tHead.rows[0].cells].forEach((head, column) => sortable(head, (down) => sortRows(table, column, down)));
  }
  const name = `${table.dataset.name || `table-${index + 1}`}.csv`;
  table.closest(".scroll").after(saver("Save as CSV", () => tableRows(table), name));
});

// --- answers: a search over all of them, a page at a time

const stored = document.getElementById("all-answers");
if (stored) {
  const data = JSON.parse(stored.textContent);
  const form = document.getElementById("find");
  const sample = document.getElementById("sample");
  const found = document.getElementById("found");
  const count = form.querySelector("output");
  const more = make("button", "save", "Show more");
  more.type = "button";
  const PAGE = 25;
  let rows = [];

  const article = (row) => {
    const whole = make("article", "answer");
    const question = make("div", "question");
    for (const tag of [row.kind, row.category]) if (tag) question.append(make("span", "tag", tag));
    question.append(make("pre", "", row.prompt));
    const expected = make("span", "muted", "expected ");
    expected.append(make("code", "", row.expected));
    question.append(expected);
    const arms = make("div", "arms");
    row.given.forEach(([text, correct], i) => {
      const given = make("div", "given");
      given.style.setProperty("--arm", `var(--${data.arms[i].slot})`);
      const header = make("header");
      header.append(make("span", "", data.arms[i].label));
      const mark = make("b", correct === null ? "muted" : correct ? "yes" : "no", correct === null ? "–" : correct ? "✓" : "✗");
      mark.title = correct === null ? "not judged" : correct ? "right" : "wrong";
      header.append(mark);
      given.append(header, text.trim() ? make("pre", "", text) : make("em", "muted", "no answer"));
      arms.append(given);
    });
    whole.append(question, arms);
    return whole;
  };

  const grow = () => {
    const shown = found.childElementCount;
    found.append(...rows.slice(shown, shown + PAGE).map(article));
    more.hidden = found.childElementCount >= rows.length;
  };

  const search = () => {
    const { words, which, kind, category } = form.elements;
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asks = wanted.length || which.value || kind.value || category?.value;
    sample.hidden = Boolean(asks);
    found.hidden = more.hidden = !asks;
    found.replaceChildren();
    count.textContent = asks ? "" : `a sample of ${data.rows.length.toLocaleString("en")} answers`;
    rows = [];
    if (!asks) return;
    rows = data.rows.filter((row) => {
      if (which.value && which.value !== "all" && !row.flags.includes(which.value)) return false;
      if (kind.value && row.kind !== kind.value) return false;
      if (category?.value && row.category !== category.value) return false;
      const text = [row.prompt, row.expected, ...row.given.map(([said]) => said)].join("\n").toLowerCase();
      return wanted.every((word) => text.includes(word));
    });
    count.textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} answers`;
    grow();
  };

  const answerRows = () => [
    ["kind", "category", "question", "expected", ...data.arms.flatMap((arm) => [arm.label, `${arm.label} is right`])],
    ...(sample.hidden ? rows : data.rows).map((row) => [row.kind, row.category ?? "", row.prompt, row.expected, ...row.given.flatMap(([text, correct]) => [text, correct ?? ""])]),
  ];
  form.append(saver("Save these as CSV", answerRows, "answers.csv"));
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", grow);
  found.after(more);
  form.hidden = false;
  search();
}
