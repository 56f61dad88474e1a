// Tables that sort: their headings become buttons.

/** Make a table sortable; `key(row, column, heading)` is what a row is ordered by, null = stays last. */
function sortable(table, key) {
  table.classList.add("sortable");
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => sortBy(table, column, heading, key));
  });
}

function sortBy(table, column, heading, key) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [key(row, column, heading), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = a < b ? -1 : a > b ? 1 : 0;
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
