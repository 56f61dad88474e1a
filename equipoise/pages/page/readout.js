// Charts drawn without script: a readout beside the point nearest to the pointer, or walked to by the arrow keys.
// What it says is the point's row in the table below the chart.

const REACH = 30;

function readable(figure_) {
  const stage = figure_.querySelector(".plane > svg"), tip = figure_.querySelector(".tip");
  const marks = [...figure_.querySelectorAll(".mark[data-row]")];
  const heads = [...figure_.querySelectorAll("details thead th")].map((th) => th.textContent);
  const rows = figure_.querySelectorAll("details tbody tr");
  let shown = null;

  const place = (mark) => {
    const frame = stage.getBoundingClientRect(), box = mark.getBoundingClientRect();
    return [box.left + box.width / 2 - frame.left, box.top + box.height / 2 - frame.top];
  };
  const show = (mark) => {
    shown?.classList.remove("shown");
    shown = mark;
    if (!mark) { tip.hidden = true; return; }
    mark.classList.add("shown");
    const cells = [...rows[mark.dataset.row].cells].map((td) => td.textContent);
    const lines = cells.slice(1).map((text, i) => [heads[i + 1], text]).filter(([, text]) => text);
    showTip(tip, stage.clientWidth, place(mark), [cells[0], ...lines.map(([head, text]) => (head === "Note" ? text : `${head} ${text}`))]);
  };
  const nearest = (event) => {
    const frame = stage.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
    let best = null, reach = REACH ** 2;
    for (const mark of marks) {
      const [left, top] = place(mark);
      const distance = (left - x) ** 2 + (top - y) ** 2 - (mark.classList.contains("spot") ? 0 : 60); // a mark before a line
      if (distance < reach) { best = mark; reach = distance; }
    }
    return best;
  };
  const walk = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const now = shown ? marks.indexOf(shown) : step > 0 ? -1 : 0;
    if (step && marks.length) show(marks[(now + step + marks.length) % marks.length]);
    else if (event.key === "Escape") show(null);
    else return;
    event.preventDefault();
  };
  stage.addEventListener("pointermove", (event) => show(nearest(event)));
  stage.addEventListener("pointerleave", () => show(null));
  stage.addEventListener("keydown", walk);
  stage.addEventListener("blur", () => show(null));
}

for (const figure_ of document.querySelectorAll("figure.chart")) readable(figure_);
