// The front, drawn by hand in SVG, and the small line of the search's progress.

const STAGE = document.getElementById("chart");
const TIP = document.getElementById("tip");
const STAR = "M0-9 2.4-2.9 8.6-2.8 3.7 1.2 5.4 7.5 0 3.9-5.4 7.5-3.7 1.2-8.6-2.8-2.4-2.9z";

/** Make an SVG element; the namespace is the page's own, so no address stands in this file. */
function svg(name, attributes, parent, text) {
  const element = document.createElementNS(STAGE.namespaceURI, name);
  for (const [key, v] of Object.entries(attributes)) element.setAttribute(key, v);
  if (text !== undefined) element.textContent = text;
  parent.appendChild(element);
  return element;
}

/** Round numbers across [low, high], about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) out.push(i * step);
  return out;
}

/** The frame's range of values on an axis; unless `all`, models far worse than any that is named are left to the rim. */
function range(points, key, all, named) {
  const values = points.map((p) => value(p, key));
  let low = Math.min(...values), high = Math.max(...values);
  if (!all && named.length && (key === "drop" || key === "quality")) {
    const costs = named.map((p) => cost(p, key)), best = Math.min(...costs), worst = Math.max(...costs);
    const reach = worst + Math.max(1.5, 0.5 * (worst - best), 1.5 * (DATA.bounds.drop ?? 0));
    if (AXES.get(key).up) low = Math.max(low, -reach);
    else high = Math.min(high, reach);
  }
  const pad = (high - low || Math.abs(high) || 1) * 0.07;
  return [low - pad < 0 && low >= 0 && key !== "drop" ? 0 : low - pad, high + pad];
}

/** Draw the chart for a state {x, y, all, limits, winner, shown}; returns what the pointer needs. */
function drawChart(state) {
  const width = Math.max(300, STAGE.parentElement.clientWidth);
  const height = Math.round(Math.min(480, Math.max(320, width * 0.62)));
  const box = { left: 46, right: width - 14, top: 26, bottom: height - 44 };
  const { x, y } = state;
  STAGE.setAttribute("viewBox", `0 0 ${width} ${height}`);
  STAGE.replaceChildren();
  const points = USABLE.filter((p) => value(p, x) !== null && value(p, y) !== null);
  if (!points.length) {
    svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, STAGE, "Nothing was read on these two axes.");
    return { placed: [] };
  }
  const best = front(points.filter((p) => RIVALS.includes(p)), x, y);
  const special = points.filter((p) => [DATA.baseline, DATA.knee, DATA.pick].includes(p.key));
  const xs = range(points, x, state.all, special), ys = range(points, y, state.all, special);
  const flip = y === "drop" || !AXES.get(y).up; // better is up
  const px = (v) => box.left + ((v - xs[0]) / (xs[1] - xs[0])) * (box.right - box.left);
  const py = (v) => { const t = (v - ys[0]) / (ys[1] - ys[0]); return flip ? box.top + t * (box.bottom - box.top) : box.bottom - t * (box.bottom - box.top); };
  const hold = (v, a, b) => Math.min(b, Math.max(a, v));

  const frame = svg("clipPath", { id: "frame" }, STAGE);
  svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }, frame);
  drawGrid(x, y, xs, ys, px, py, box);
  drawLimits(state, px, py, box, hold);
  const inside = svg("g", { "clip-path": "url(#frame)" }, STAGE);
  drawFront(inside, best.map((p) => [px(value(p, x)), py(value(p, y))]), box);

  const onFront = new Set(best);
  const placed = points.map((p) => {
    const at = [px(value(p, x)), py(value(p, y))];
    const seen = at[0] >= box.left && at[0] <= box.right && at[1] >= box.top && at[1] <= box.bottom;
    return { p, x, y, inside: seen, cx: hold(at[0], box.left, box.right), cy: hold(at[1], box.top, box.bottom), front: onFront.has(p) };
  });
  const rank = (d) => (special.includes(d.p) ? 2 : d.front ? 1 : 0);
  placed.sort((a, b) => rank(a) - rank(b));
  for (const d of placed) if (d.front && d.inside) drawError(inside, d, d.p.values[x].slice(1, 3).map(px), d.p.values[y].slice(1, 3).map(py));
  for (const d of placed) drawMark(d);
  drawRoles(placed, state, box);
  STAGE.dataset.front = best.map((p) => p.key).join(" ");
  return { placed, box };
}

function drawGrid(x, y, xs, ys, px, py, box) {
  const ax = AXES.get(x), ay = AXES.get(y);
  const fx = ax.factor, fy = ay.factor;
  for (const t of ticks(ys[0] / fy, ys[1] / fy, 6)) {
    svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(t * fy), y2: py(t * fy) }, STAGE);
    svg("text", { x: box.left - 8, y: py(t * fy) + 4, "text-anchor": "end" }, STAGE, String(Number(t.toPrecision(4))));
  }
  for (const t of ticks(xs[0] / fx, xs[1] / fx, box.right < 480 ? 4 : 8)) {
    svg("text", { x: px(t * fx), y: box.bottom + 18, "text-anchor": "middle" }, STAGE, t.toLocaleString("en-US", { maximumSignificantDigits: 4 }));
  }
  svg("line", { class: "grid", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, STAGE);
  svg("text", { class: "title", x: box.right, y: box.bottom + 36, "text-anchor": "end" }, STAGE, `← ${ax.label}${ax.unit ? ", " + ax.unit : ""} (less is better)`);
  svg("text", { class: "title", x: 0, y: 12 }, STAGE, `↑ ${ay.label}, points (up is better)`);
}

/** Tint what the limits forbid. */
function drawLimits(state, px, py, box, hold) {
  const bx = state.limits[state.x], by_ = state.limits[state.y];
  const cut = { x: box.right, y: box.bottom };
  if (bx !== undefined) cut.x = hold(px(bx), box.left, box.right);
  if (by_ !== undefined) cut.y = hold(py(by_), box.top, box.bottom);
  if (cut.x < box.right) {
    svg("rect", { class: "outside", x: cut.x, y: box.top, width: box.right - cut.x, height: box.bottom - box.top }, STAGE);
    svg("line", { class: "limit", x1: cut.x, x2: cut.x, y1: box.top, y2: box.bottom }, STAGE);
  }
  if (cut.y < box.bottom) {
    svg("rect", { class: "outside", x: box.left, y: cut.y, width: cut.x - box.left, height: box.bottom - cut.y }, STAGE);
    svg("line", { class: "limit", x1: box.left, x2: box.right, y1: cut.y, y2: cut.y }, STAGE);
  }
}

/** The staircase: what is attainable lies below and to the right of it. */
function drawFront(parent, at, box) {
  const path = `M${at[0][0]} ${at[0][1]}` + at.slice(1).map(([h, v]) => `H${h}V${v}`).join("");
  svg("path", { class: "area", d: `${path}H${box.right}V${box.bottom + 4e3}H${at[0][0]}Z` }, parent);
  svg("path", { class: "front", d: path }, parent);
}

/** The 95% interval of a point, across and up, where it is known. */
function drawError(parent, d, [left, right], [low, high]) {
  const known = (axis) => d.p.values[axis][1] !== null;
  let path = "";
  if (known(d.x)) path += `M${left} ${d.cy}H${right}M${left} ${d.cy - 3}v6M${right} ${d.cy - 3}v6`;
  if (known(d.y)) path += `M${d.cx} ${low}V${high}M${d.cx - 3} ${low}h6M${d.cx - 3} ${high}h6`;
  if (path) svg("path", { class: "error", d: path }, parent);
}

function drawMark(d) {
  const faint = d.front || d.p === BASELINE ? "" : " faint";
  if (!d.inside) {
    svg("path", { class: `dot ${d.p.fidelity}${faint}`, d: `M${d.cx - 3.5} ${d.cy - 5}h7l-3.5 6z` }, STAGE);
  } else if (d.p === BASELINE) {
    svg("path", { class: "star", d: STAR, transform: `translate(${d.cx} ${d.cy})` }, STAGE);
  } else {
    svg("circle", { class: `dot ${["recovered", "told"].includes(d.p.fidelity) ? d.p.fidelity : "one-shot"}${faint}`, cx: d.cx, cy: d.cy, r: d.front ? 4.5 : 3.8 }, STAGE);
  }
}

/** Rings, the knee's diamond and the labels of the points that have a name. */
function drawRoles(placed, state, box) {
  const names = new Map();
  const name = (point, word) => { if (point) names.set(point, [...(names.get(point) ?? []), word]); };
  name(BASELINE, "original");
  name(BY_KEY.get(DATA.knee), "knee");
  name(BY_KEY.get(DATA.pick), "pick");
  if (state.winner && state.winner.key !== DATA.pick) name(state.winner, "winner");
  const taken = [];
  for (const d of placed) {
    const called = names.get(d.p) ?? [];
    if (called.includes("knee")) svg("path", { class: "knee", d: "M0-12 12 0 0 12-12 0z", transform: `translate(${d.cx} ${d.cy})` }, STAGE);
    const outdone = state.winner && state.winner.key !== DATA.pick;
    if (called.includes("winner")) svg("circle", { class: "ring", cx: d.cx, cy: d.cy, r: 9 }, STAGE);
    else if (called.includes("pick")) svg("circle", { class: `ring${outdone ? " outdone" : ""}`, cx: d.cx, cy: d.cy, r: 9 }, STAGE);
    if (d.p === state.shown) svg("circle", { class: "ring shown", cx: d.cx, cy: d.cy, r: 15 }, STAGE);
    if (!called.length) continue;
    const text = called.join(" · "), wide = text.length * 7;
    const spots = [[16, -12, "start"], [-16, -12, "end"], [16, 22, "start"], [-16, 22, "end"], [0, -22, "middle"], [0, 32, "middle"]];
    const others = placed.filter((o) => o !== d && (o.front || o.p === BASELINE)).map((o) => [o.cx - 6, o.cy - 6, 12]);
    const fits = (busy) => ([dx, dy, anchor]) => {
      const left = d.cx + dx - (anchor === "end" ? wide : anchor === "middle" ? wide / 2 : 0), top = d.cy + dy - 11;
      const inside = left > box.left - 20 && left + wide < box.right + 10 && top > box.top - 12 && top + 14 < box.bottom;
      return inside && !busy.some((t) => left < t[0] + t[2] && left + wide > t[0] && top < t[1] + 15 && top + 15 > t[1]);
    };
    const spot = spots.find(fits([...taken, ...others])) ?? spots.find(fits(taken)) ?? spots[0];
    const left = d.cx + spot[0] - (spot[2] === "end" ? wide : spot[2] === "middle" ? wide / 2 : 0);
    taken.push([left, d.cy + spot[1] - 11, wide]);
    svg("text", { class: `label${called.includes("winner") || called.includes("pick") ? " winner" : ""}`, x: d.cx + spot[0], y: d.cy + spot[1], "text-anchor": spot[2] }, STAGE, text);
  }
}

/** The search's progress: hypervolume against evaluations or seconds. */
function drawProgress(stage, key) {
  const steps = DATA.progress.filter((s) => s.hypervolume !== null && s[key] !== null);
  stage.replaceChildren();
  if (!steps.length) return;
  const width = Math.max(300, stage.parentElement.clientWidth), height = 220;
  const box = { left: 46, right: width - 14, top: 26, bottom: height - 40 };
  stage.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const unit = key === "seconds" && steps[steps.length - 1].seconds > 180 ? 60 : 1;
  const top = Math.max(...steps.map((s) => s.hypervolume)) || 1, end = steps[steps.length - 1][key] / unit || 1;
  const px = (v) => box.left + (v / end) * (box.right - box.left), py = (v) => box.bottom - (v / (top * 1.06)) * (box.bottom - box.top);
  for (const t of ticks(0, top, 5)) {
    svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(t), y2: py(t) }, stage);
    svg("text", { x: box.left - 8, y: py(t) + 4, "text-anchor": "end" }, stage, String(Number(t.toPrecision(3))));
  }
  for (const t of ticks(0, end, width < 480 ? 5 : 10)) svg("text", { x: px(t), y: box.bottom + 18, "text-anchor": "middle" }, stage, String(Number(t.toPrecision(4))));
  let path = `M${px(steps[0][key] / unit)} ${py(steps[0].hypervolume)}`;
  for (const s of steps.slice(1)) path += `H${px(s[key] / unit)}V${py(s.hypervolume)}`;
  svg("path", { class: "area", d: `${path}V${box.bottom}H${px(steps[0][key] / unit)}Z` }, stage);
  svg("path", { class: "front", d: path }, stage);
  svg("text", { class: "title", x: 0, y: 12 }, stage, "↑ Hypervolume");
  svg("text", { class: "title", x: box.right, y: box.bottom + 36, "text-anchor": "end" }, stage, key === "n" ? "Evaluations →" : `Time, ${unit === 60 ? "min" : "s"} →`);
}
