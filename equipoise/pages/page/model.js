// The study, and the questions asked of it: pure functions, no drawing.

const DATA = JSON.parse(document.getElementById("study").textContent);
const AXES = new Map(DATA.axes.map((axis) => [axis.key, axis]));
const POINTS = DATA.points.map((p) => ({ ...p, values: unpack(p.values) }));
const USABLE = POINTS.filter((p) => !p.error);
const RIVALS = [...new Map(USABLE.map((p) => [p.key.split(":")[0], p])).values()]; // of one plan, how far it was taken
const BY_KEY = new Map(POINTS.map((p) => [p.key, p]));
const BASELINE = BY_KEY.get(DATA.baseline);
const ROLES = { baseline: "original", knee: "knee", pick: "pick" };

/** Readings as {axis: [value, low, high, n, provenance]}; the file leaves out a tail that says nothing. */
function unpack(values) {
  const known = DATA.axes.map((axis, i) => [axis.key, values[i]]).filter(([, reading]) => reading !== null);
  return Object.fromEntries(known.map(([key, reading]) => [key, reading.length === 1 ? [reading[0], null, null, 1, "m"] : reading]));
}

/** The value of a point on an axis in base units, or null where it was not read. */
function value(point, axis) {
  const reading = point.values[axis];
  return reading ? reading[0] : null;
}

/** The value turned so that smaller is always better. */
function cost(point, axis) {
  const v = value(point, axis);
  return v === null ? null : AXES.get(axis).up ? -v : v;
}

/** A value in base units as a figure of its axis, with or without the unit. */
function show(key, v, unit = true) {
  if (v === null || v === undefined) return "–";
  const axis = AXES.get(key);
  if (!axis) return figure(v);
  const text = key === "drop" || key === "quality" ? v.toFixed(2) : figure(v / axis.factor);
  return unit && axis.unit && axis.unit !== "points" ? `${text} ${axis.unit}` : text;
}

/** The points that no other point beats on both axes, in order along x. */
function front(points, x, y) {
  const known = points.filter((p) => cost(p, x) !== null && cost(p, y) !== null);
  const order = known.slice().sort((a, b) => cost(a, x) - cost(b, x) || cost(a, y) - cost(b, y));
  const out = [];
  let best = Infinity;
  for (const p of order) {
    const last = out[out.length - 1];
    const twin = last && cost(last, x) === cost(p, x) && cost(last, y) === cost(p, y);
    if (cost(p, y) < best || twin) out.push(p);
    best = Math.min(best, cost(p, y));
  }
  return out;
}

/** By how much a point exceeds the limits: {axis: relative excess}. An axis that was not read exceeds any limit. */
function excesses(point, limits) {
  const out = {};
  for (const [axis, bound] of Object.entries(limits)) {
    const v = value(point, axis);
    const over = v === null ? Infinity : AXES.get(axis).up ? bound - v : v - bound;
    if (over > 0) out[axis] = over / (Math.abs(bound) || 1);
  }
  return out;
}

/** What counts in a choice: a drop below zero is zero unless its interval leaves zero out. */
function counted(point, axis) {
  const v = cost(point, axis);
  if (axis !== "drop" || v === null || v >= 0) return v;
  const high = point.values[axis][2] ?? null;
  return high !== null && high < 0 ? v : 0;
}

/** Whether two points differ on an axis by more than their intervals together allow. */
function apart(a, b, axis) {
  const [low, high] = [a.values[axis], b.values[axis]].sort((x, y) => x[0] - y[0]);
  const above = Math.max(0, (low[2] ?? low[0]) - low[0]), below = Math.max(0, high[0] - (high[1] ?? high[0]));
  return high[0] - low[0] > Math.hypot(above, below);
}

/** The point that is least on the axes named: each decides among those that the ones before cannot tell apart. */
function least(points, ...axes) {
  let left = points.filter((p) => counted(p, axes[0]) !== null);
  for (const axis of axes) {
    const known = left.filter((p) => counted(p, axis) !== null);
    if (known.length === 0) continue;
    const best = known.reduce((a, b) => (counted(b, axis) < counted(a, axis) ? b : a));
    left = known.filter((p) => counted(p, axis) === counted(best, axis) || !apart(p, best, axis));
  }
  const key = (p) => axes.slice().reverse().map((axis) => counted(p, axis) ?? Infinity);
  const less = (a, b) => { const i = a.findIndex((v, n) => v !== b[n]); return i >= 0 && a[i] < b[i]; };
  return left.reduce((a, b) => (a === null || less(key(b), key(a)) ? b : a), null);
}

/**
 * The best model within the limits, by the rule of `equipoise export --pick`: where the drop is limited that much may be
 * spent, and the fastest wins; otherwise the lowest drop wins; with no limit at all, the knee.
 */
function winner(limits) {
  const names = Object.keys(limits);
  const within = RIVALS.filter((p) => Object.keys(excesses(p, limits)).length === 0);
  if (names.length === 0) return { point: BY_KEY.get(DATA.knee) ?? null, within, rule: "With no limit, the knee: beyond it, speed costs more than it gives." };
  if (within.length === 0) return { point: null, within, nearest: nearest(limits), rule: "" };
  const spend = "drop" in limits || "quality" in limits;
  const order = spend ? ["latency_s", "drop", "size_bytes"] : ["drop", "latency_s", "size_bytes"];
  const rule = spend ? "The fastest within the limits." : "The lowest drop within the limits.";
  return { point: least(within, ...order), within, rule };
}

/** The point that exceeds the limits least in sum, and the axis it exceeds most. */
function nearest(limits) {
  const total = (p) => Object.values(excesses(p, limits)).reduce((a, b) => a + b, 0);
  const point = RIVALS.slice().sort((a, b) => total(a) - total(b))[0] ?? null;
  if (!point) return null;
  const [axis, over] = Object.entries(excesses(point, limits)).sort((a, b) => b[1] - a[1])[0];
  return { point, axis, over };
}

/** "2.31× faster" against the original, or "" where it cannot be said. */
function ratio(point, key, better, worse) {
  const before = BASELINE && value(BASELINE, key), after = value(point, key);
  if (!(before > 0) || !(after > 0)) return "";
  const times = key === "latency_s" && point.speed_up ? point.speed_up[0] : before / after; // timed side by side, where it was
  if (times.toFixed(2) === "1.00") return "";
  return times > 1 ? `${times.toFixed(2)}× ${better}` : `${(1 / times).toFixed(2)}× ${worse}`;
}

/** What a plan changes, in words: [[kind, sentence], ...], read against the original's choices. */
function words(point) {
  const kinds = new Map(); // kind -> every place of it, and those that changed
  DATA.knobs.forEach((knob, i) => {
    const [kind, ...rest] = knob.split(".");
    const from = BASELINE ? BASELINE.plan[i] : null, to = point.plan[i];
    if (!kinds.has(kind)) kinds.set(kind, { all: [], changed: [] });
    const entry = kinds.get(kind);
    if (to === null) return;
    entry.all.push(rest.join("."));
    if (to !== from) entry.changed.push({ place: rest.join("."), step: `${from ?? "–"} → ${to}` });
  });
  const out = [];
  for (const [kind, { all, changed }] of kinds) {
    if (!changed.length) continue;
    const same = new Map();
    for (const c of changed) {
      same.set(c.step, [...(same.get(c.step) ?? []), c.place]);
    }
    for (const [step, places] of same) {
      const where = somewhere(places, all);
      out.push([kind, where ? `${step} in ${where}` : step]);
    }
  }
  return out;
}

/** Name some of all places in the shorter way. */
function somewhere(places, all) {
  const rest = all.filter((place) => !places.includes(place));
  if (all.length > 2 && rest.length === 0) return `all ${all.length} layers`;
  if (places.length > 4 && rest.length <= 4) return `all ${all.length} layers but ${rest.join(", ")}`;
  return places.join(", ");
}
