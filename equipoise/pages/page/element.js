// What every page makes its elements, figures and files with. Text only, never markup.

function element(name, parent, text, className) {
  const out = document.createElement(name);
  if (text !== undefined) out.textContent = text;
  if (className) out.className = className;
  parent.appendChild(out);
  return out;
}

/** A bare number with three figures, as the tables print it. */
function figure(x) {
  if (Math.abs(x) >= 100 || x === Math.round(x)) return Math.round(x).toLocaleString("en-US");
  if (Math.abs(x) < 1e-4) return x.toExponential(1);
  return String(Number(x.toPrecision(3)));
}

/** Lines of cells as CSV. */
function csv(lines) {
  const cell = (v) => (/[",\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
  return lines.map((line) => line.map((v) => cell(String(v))).join(",")).join("\n");
}

/** Offer files made on the spot: [[what the link says, file name, type, text], ...]. */
function offer(place, files) {
  for (const [says, name, type, text] of files) {
    const link = element("a", place, says);
    link.href = "#";
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const file = document.createElement("a");
      file.href = URL.createObjectURL(new Blob([text], { type }));
      file.download = name;
      file.click();
      setTimeout(() => URL.revokeObjectURL(file.href), 1000);
    });
  }
}
