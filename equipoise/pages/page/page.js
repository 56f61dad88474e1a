// The controls: what is drawn, what the budget is, which plan is shown. The address's #fragment holds the budget.

const state = { x: "latency_s", y: "drop", all: false, limits: {}, winner: null, shown: null, hover: null };
const LIMITS = [...document.querySelectorAll("#budget .limit")].map((row) => limitOf(row));
let drawn = { placed: [] };

/** One slider with its number: reads and writes one limit. */
function limitOf(row) {
  const axis = AXES.get(row.dataset.axis), [range_, number] = row.querySelectorAll("input");
  const values = USABLE.map((p) => value(p, axis.key)).filter((v) => v !== null);
  let low = Math.min(...values), high = Math.max(...values);
  if (axis.key === "drop") {
    const edge = front(RIVALS, "latency_s", "drop").map((p) => value(p, "drop"));
    low = 0;
    high = Math.max(2, 1.5 * (DATA.bounds.drop ?? 0), Math.min(high, 1.2 * Math.max(0, ...edge)));
  } else {
    low = Math.max(0, low - 0.03 * (high - low));
  }
  const steps = Number(range_.max);
  return {
    axis, range: range_, number,
    at: (position) => (position >= steps ? null : low + ((high - low) * position) / steps),
    write(bound) {
      const where = bound === null ? steps : Math.round((steps * (bound - low)) / (high - low || 1));
      range_.value = String(Math.min(bound === null ? steps : steps - 1, Math.max(0, where)));
      if (document.activeElement !== number) number.value = bound === null ? "" : String(Number((bound / axis.factor).toPrecision(4)));
      range_.setAttribute("aria-valuetext", bound === null ? "no limit" : show(axis.key, bound));
    },
  };
}

function setLimit(limit, bound) {
  if (bound === null || Number.isNaN(bound)) delete state.limits[limit.axis.key];
  else state.limits[limit.axis.key] = bound;
}

/** Recompute the winner for the limits and show it; `touched` records them in the address. */
function applyLimits(touched) {
  for (const limit of LIMITS) limit.write(state.limits[limit.axis.key] ?? null);
  const asRun = touched === false && BY_KEY.has(DATA.pick);
  const found = asRun ? { point: BY_KEY.get(DATA.pick), within: winner(state.limits).within, rule: DATA.pick_rule } : winner(state.limits);
  state.winner = found.point;
  state.shown = found.point ?? state.shown;
  tellWinner(found, asRun);
  if (touched) remember();
  redraw();
}

function tellWinner(found, asRun) {
  const out = document.getElementById("winner");
  out.replaceChildren();
  out.dataset.key = found.point ? found.point.key : "";
  const count = Object.keys(state.limits).length ? `${found.within.length} of ${RIVALS.length} models are within the limits` : "";
  if (found.point) {
    const p = found.point, read = ["latency_s", "size_bytes"].filter((k) => value(p, k) !== null).map((k) => show(k, value(p, k)));
    const gains = [ratio(p, "latency_s", "faster", "slower"), ratio(p, "size_bytes", "smaller", "larger")].filter(Boolean);
    element("b", out, p === BASELINE ? "The original wins" : `${asRun ? "The study's pick" : "Winner"}: evaluation ${POINTS.indexOf(p) + 1}`);
    out.append(` · ${[...read, `drop ${show("drop", value(p, "drop"))}`].join(" · ")}${gains.length ? ` · ${gains.join(", ")}` : ""}`);
    element("small", out, [found.rule.replace(/\.$/, ""), count].filter(Boolean).join(" · "));
    const ship = found.within.includes(p) ? element("small", out, "To ship it: ") : null;
    if (ship) element("code", ship, `equipoise export STUDY --pick ${asRun ? "best" : Object.keys(state.limits).length ? `"${written(", ", "<=")}"` : "knee"}`);
  } else if (found.nearest) {
    const { point, axis, over } = found.nearest;
    element("b", out, "No model measured is within these limits.");
    const name = (AXES.get(axis)?.label ?? axis).toLowerCase();
    const by_ = Number.isFinite(over) ? `${name} is over by ${figure(100 * over)}%` : `${name} was not read`;
    element("small", out, `Nearest: evaluation ${POINTS.indexOf(point) + 1} (${show("latency_s", value(point, "latency_s"))}, drop ${show("drop", value(point, "drop"))}); ${by_}.`);
  } else {
    element("b", out, "The study has no pick.");
  }
}

/** The limits in text, in the page's units: latency<=0.8ms, drop<=1 */
function written(comma, relation) {
  const quantity = (axis, bound) => Number((bound / axis.factor).toPrecision(4)) + (axis.unit === "points" ? "" : axis.unit);
  return Object.entries(state.limits)
    .filter(([key]) => AXES.has(key))
    .map(([key, bound]) => `${AXES.get(key).word}${AXES.get(key).up && relation === "<=" ? ">=" : relation}${quantity(AXES.get(key), bound)}`)
    .join(comma);
}

/** Keep the limits in the address: #latency=0.8ms&drop=1 */
function remember() {
  history.replaceState(null, "", `#${written("&", "=") || "any"}`);
}

/** Read the limits from the address; a number without a unit is in the page's unit. Returns whether there were any. */
function recall() {
  const text = decodeURIComponent(location.hash.slice(1));
  if (!text) return false;
  state.limits = {};
  for (const part of text.split("&")) {
    const [, word, number, unit] = /^([a-z_]+)=([0-9.]+)(.*)$/.exec(part) ?? [];
    const axis = DATA.axes.find((a) => a.word === word && ["", a.unit].includes(unit));
    if (axis && Number.isFinite(Number(number))) state.limits[axis.key] = Number(number) * axis.factor;
  }
  return true;
}

function redraw() {
  drawn = drawChart(state);
  showPanel(state.shown);
  for (const row of document.querySelectorAll("#evaluations tbody tr")) row.classList.toggle("shown", state.shown !== null && row.dataset.key === state.shown?.key);
  drawProgressIfAny();
}

function drawProgressIfAny() {
  const stage = document.getElementById("progress");
  if (stage) drawProgress(stage, document.getElementById("progress-axis").value);
}

/** The drawn point nearest to the pointer, within reach. */
function nearestDrawn(event) {
  const frame = STAGE.getBoundingClientRect(), scale = STAGE.viewBox.baseVal.width / frame.width;
  const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
  let best = null, reach = 26 ** 2;
  for (const d of drawn.placed) {
    const distance = (d.cx - x) ** 2 + (d.cy - y) ** 2 - (d.front ? 30 : 0);
    if (distance < reach) { best = d; reach = distance; }
  }
  return best;
}

function hover(d) {
  state.hover = d;
  if (!d) { TIP.hidden = true; return; }
  const p = d.p, line = (k) => `${AXES.get(k).label} ${show(k, value(p, k))} ${interval(k, p.values[k])}`.trim();
  const role = Object.entries(ROLES).filter(([r]) => DATA[r] === p.key).map(([, word]) => word);
  const scale = STAGE.clientWidth / STAGE.viewBox.baseVal.width;
  showTip(TIP, STAGE.clientWidth, [d.cx * scale, d.cy * scale], [`Evaluation ${POINTS.indexOf(p) + 1}${role.length ? `, ${role.join(", ")}` : ""}`, line(state.x), line(state.y), `${p.fidelity}${d.front ? ", on the front" : ""}${d.inside ? "" : ", beyond the frame"}`]);
}

function keep(point) {
  if (!point) return;
  state.shown = point;
  redraw();
}

function walk(event) {
  const order = drawn.placed.slice().sort((a, b) => a.cx - b.cx || a.cy - b.cy);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step && order.length) {
    const now = order.findIndex((d) => d.p === (state.hover?.p ?? state.shown));
    hover(order[(now + step + order.length) % order.length]);
  } else if (event.key === "Enter" && state.hover) keep(state.hover.p);
  else if (event.key === "Escape") hover(null);
  else return;
  event.preventDefault();
}

/** What a row of the table is ordered by; unread cells and failed evaluations stay last. */
function sortKey(row, column, heading) {
  const point = BY_KEY.get(row.dataset.key), axis = heading.dataset.axis;
  if (axis === undefined) return row.cells[column].textContent.trim() || null;
  return axis === "number" ? POINTS.indexOf(point) : axis === "seconds" ? point.seconds : value(point, axis);
}

function prepareTable() {
  const table = document.getElementById("evaluations");
  sortable(table, sortKey);
  const best = new Set(front(RIVALS, "latency_s", "drop").map((p) => p.key));
  for (const row of table.tBodies[0].rows) {
    if (best.has(row.dataset.key)) element("em", row.cells[1], "front", "tag");
    else if (!Object.keys(ROLES).some((role) => DATA[role] === row.dataset.key)) row.classList.add("beaten");
    row.querySelector("button").addEventListener("click", () => {
      keep(BY_KEY.get(row.dataset.key));
      PANEL.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    });
  }
}

/** Offer the data as files. */
function prepareDownloads() {
  const head = ["evaluation", "key", "fidelity", ...DATA.axes.map((a) => a.key), "seconds", "error"];
  const lines = POINTS.map((p, i) => [i + 1, p.key, p.fidelity, ...DATA.axes.map((a) => value(p, a.key) ?? ""), p.seconds, p.error]);
  offer(document.getElementById("downloads"), [
    ["Save as CSV", "equipoise.csv", "text/csv", csv([head, ...lines])],
    ["Save as JSON", "equipoise.json", "application/json", JSON.stringify(DATA, null, 1)],
  ]);
}

function start() {
  const get = (id) => document.getElementById(id);
  for (const id of ["toolbar", "budget"]) get(id).addEventListener("submit", (event) => event.preventDefault());
  if (!AXES.has("quality")) get("y-axis").querySelector("[value=quality]").remove();
  if (!AXES.has("latency_s")) state.x = get("x-axis").value;
  get("x-axis").addEventListener("change", (event) => { state.x = event.target.value; hover(null); redraw(); });
  get("y-axis").addEventListener("change", (event) => { state.y = event.target.value; hover(null); redraw(); });
  get("all").addEventListener("change", (event) => { state.all = event.target.checked; hover(null); redraw(); });
  get("progress-axis")?.addEventListener("change", drawProgressIfAny);
  for (const limit of LIMITS) {
    limit.range.addEventListener("input", () => { setLimit(limit, limit.at(Number(limit.range.value))); applyLimits(true); });
    limit.number.addEventListener("input", () => { setLimit(limit, limit.number.value === "" ? null : Number(limit.number.value) * limit.axis.factor); applyLimits(true); });
  }
  get("as-run").addEventListener("click", () => { history.replaceState(null, "", "#"); state.limits = { ...DATA.bounds }; applyLimits(false); });
  get("no-limits").addEventListener("click", () => { state.limits = {}; applyLimits(true); });
  STAGE.addEventListener("pointermove", (event) => hover(nearestDrawn(event)));
  STAGE.addEventListener("pointerleave", () => hover(null));
  STAGE.addEventListener("click", (event) => keep(nearestDrawn(event)?.p));
  STAGE.addEventListener("keydown", walk);
  STAGE.addEventListener("blur", () => hover(null));
  addEventListener("hashchange", () => { const told = recall(); if (!told) state.limits = { ...DATA.bounds }; applyLimits(told ? undefined : false); });
  addEventListener("resize", redraw);
  prepareTable();
  prepareDownloads();
  const told = recall();
  if (!told) state.limits = { ...DATA.bounds };
  applyLimits(told ? undefined : false);
}

start();
