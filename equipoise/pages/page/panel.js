// One plan in detail: what it changes, what was predicted, what was measured. Text only, never markup.

const PANEL = document.getElementById("panel");

/** "[0.47, 0.49]", or "" where the spread is not known. */
function interval(axis, [, low, high]) {
  return low === null || high === null ? "" : `[${show(axis, low, false)}, ${show(axis, high, false)}]`;
}

/** Fill the panel with a point. */
function showPanel(point) {
  PANEL.replaceChildren();
  if (!point) {
    element("p", PANEL, "Choose a point of the chart or a row of the table.", "sub");
    return;
  }
  const roles = Object.entries(ROLES).filter(([role]) => DATA[role] === point.key).map(([, word]) => word);
  const number = POINTS.indexOf(point) + 1;
  element("h3", PANEL, roles.length ? `The ${roles.join(", the ")}` : `Evaluation ${number}`);
  const gains = [ratio(point, "latency_s", "faster", "slower"), ratio(point, "size_bytes", "smaller", "larger")].filter(Boolean);
  if (gains.length) element("p", PANEL, gains.join(", "));
  element("p", PANEL, `${roles.length ? `evaluation ${number} · ` : ""}${point.fidelity} · took ${figure(point.seconds)} s · ${point.key.slice(0, 8)}`, "sub");
  if (point.error) element("p", PANEL, `failed: ${point.error}`, "reason");
  panelReadings(point);
  panelPlan(point);
  const details = Object.entries(point.details).filter(([name]) => name !== "damage");
  if (details.length) {
    element("h4", PANEL, "Noted");
    const list = element("ul", PANEL);
    for (const [name, v] of details) element("li", list, `${name.replaceAll("_", " ")}: ${typeof v === "number" ? figure(v) : v}`);
  }
}

function panelReadings(point) {
  const table = element("table", PANEL), head = element("tr", element("thead", table)), body = element("tbody", table);
  for (const word of ["", "measured", "predicted"]) element("th", head, word, word && "num").scope = "col";
  for (const axis of DATA.axes) {
    const reading = point.values[axis.key], guess = point.predicted[axis.key];
    if (!reading && guess === undefined) continue;
    const row = element("tr", body);
    element("th", row, axis.label).scope = "row";
    const cell = element("td", row, reading ? show(axis.key, reading[0]) : "–", "num");
    if (reading && interval(axis.key, reading)) element("small", cell, interval(axis.key, reading));
    const marked = reading && { e: "estimate", t: "told" }[reading[4]];
    if (reading && (reading[3] > 1 || marked)) element("small", cell, marked ?? `${reading[3].toLocaleString("en-US")} samples`);
    const told = element("td", row, guess === undefined || guess === null ? "" : show(axis.key, guess, false), "num");
    if (reading && guess > 0 && reading[0] > 0 && axis.key !== "drop") {
      const off = Math.round((100 * (guess - reading[0])) / reading[0]);
      element("small", told, `${off > 0 ? "+" : off < 0 ? "−" : "±"}${Math.abs(off)}%`);
    }
  }
  const found = point.details.damage, guess = point.predicted.damage;
  if ((found ?? guess ?? null) !== null) {
    const row = element("tr", body);
    element("th", row, `Loss, ${DATA.damage_unit}`).scope = "row";
    element("td", row, (found ?? null) === null ? "–" : figure(found), "num");
    element("td", row, (guess ?? null) === null ? "" : figure(guess), "num");
  }
}

function panelPlan(point) {
  element("h4", PANEL, "What it changes");
  const lines = words(point), list = element("ul", PANEL);
  if (!lines.length) element("li", list, "Nothing: this is the model as it came.");
  for (const [kind, sentence] of lines) {
    const item = element("li", list);
    element("b", item, `${DATA.nouns[kind] ?? kind} `);
    item.append(sentence);
  }
}
