// The readout beside a point of a chart.

/** Show lines of text beside the place (x, y) of a stage `room` pixels wide; the first line is the head. */
function showTip(tip, room, [x, y], lines) {
  tip.replaceChildren();
  lines.forEach((line, i) => {
    const row = document.createElement(i ? "span" : "b");
    row.textContent = line;
    if (i > 1) tip.appendChild(document.createElement("br"));
    tip.appendChild(row);
  });
  tip.hidden = false;
  const left = x + 18 > room - tip.offsetWidth ? x - tip.offsetWidth - 18 : x + 18;
  const top = Math.max(0, y - tip.offsetHeight - 8);
  tip.style.transform = `translate(${Math.max(0, Math.round(left))}px, ${Math.round(top)}px)`;
}
