"use strict";

// What the scripts of all pages share.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Sorts a table by the column of a heading with data-sort, by the data of its rows; the same column again turns it round.
function sortBy(table, heading) {
  const { sort } = heading.dataset;
  const other = { ascending: "descending", descending: "ascending" };
  const order = other[heading.getAttribute("aria-sort")] ?? (sort === "name" ? "ascending" : "descending");
  for (const each of all("[aria-sort]", table)) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const compare = sort === "name"
    ? (a, b) => a.dataset.name.localeCompare(b.dataset.name)
    : (a, b) => a.dataset[sort] - b.dataset[sort];
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.rows].filter((row) => row.dataset.name !== undefined);
  table.tBodies[0].append(...rows.sort((a, b) => sign * compare(a, b)));
}

// Makes the headings of a table buttons that sort it.
function makeSortable(table) {
  for (const heading of all("[data-sort]", table)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, heading));
    heading.replaceChildren(button);
  }
}

