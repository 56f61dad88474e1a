// The scale page's controls: sorting, saving, and the bill for a number of requests.

const DATA = JSON.parse(document.getElementById("scale").textContent);

/** What a row of a table of figures is ordered by. */
function cellKey(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.classList.contains("num") ? null : cell.textContent.trim() || null;
}

/** Add a column with the total of each candidate, and keep it and the cheapest up to date. */
function prepareBill(form, table) {
  const requests = document.getElementById("requests"), regret = document.getElementById("regret"), out = document.getElementById("cheapest");
  const unit = form.dataset.unit, hours = unit === "s";
  const part = (row, name) => (row.dataset[name] === undefined ? null : Number(row.dataset[name]));
  const rows = [...table.tBodies[0].rows];
  const second = (row, made) => row.insertBefore(made, row.cells[1]);
  second(table.tHead.rows[0], element("th", table.tHead.rows[0], hours ? "Total, h" : "Total, $", "num")).scope = "col";
  const cells = new Map(rows.map((row) => [row, second(row, element("td", row, "", "num"))]));
  const money = (v) => (hours ? `${figure(v / 3600)} h` : `$${figure(v)}`);

  const add = () => {
    const count = Number(requests.value), most = regret ? Number(regret.value) / 100 : Infinity;
    let best = null;
    for (const row of rows) {
      const once = part(row, "once"), each = part(row, "each"), cell = cells.get(row);
      const total = once === null || each === null ? null : once + count * each;
      cell.textContent = total === null ? "–" : figure(hours ? total / 3600 : total);
      if (total === null) delete cell.dataset.value;
      else cell.dataset.value = String(total);
      const allowed = row.dataset.within === "yes" && (part(row, "regret") ?? Infinity) <= most;
      if (allowed && total !== null && (best === null || total < best.total)) best = { row, total, once, each };
    }
    for (const row of rows) row.classList.toggle("shown", row === best?.row);
    out.replaceChildren();
    out.dataset.name = best ? best.row.dataset.name : "";
    if (!best) { element("b", out, "No candidate keeps the limits with so little regret."); return; }
    element("b", out, `Cheapest in all: ${best.row.dataset.name}`);
    out.append(` · ${money(best.total)}: ${money(best.once)} to train, ${money(count * best.each)} for ${count.toLocaleString("en-US")} requests`);
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", add);
  add();
}

/** Offer the runs in the form that `equipoise scale fit` reads, and the whole summary. */
function prepareDownloads() {
  const told = (v) => (v === null || v === undefined ? "" : typeof v === "object" ? (v.value ?? "") : v);
  const dimensions = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.scale ?? {})))];
  const names = ["label", "params", "flops_per_sample", "samples", "unique", "compute", "loss", "quality", "seconds", "seed", "annealed", "held_out"];
  const lines = DATA.runs.filter((run) => told(run.loss) !== "").map((run) => [...names.map((name) => told(run[name])), ...dimensions.map((d) => told(run.scale?.[d]))]);
  offer(document.getElementById("downloads"), [
    ["Save as CSV", "runs.csv", "text/csv", csv([[...names, ...dimensions.map((d) => `scale.${d}`)], ...lines])],
    ["Save all as JSON", "scale.json", "application/json", JSON.stringify(DATA, null, 1)],
  ]);
}

const BILL = document.getElementById("bill");
if (BILL) prepareBill(BILL, document.getElementById("candidates"));
for (const table of document.querySelectorAll("table.figures")) sortable(table, cellKey);
prepareDownloads();
