// The training page offers its curve as files.

const DATA = JSON.parse(document.getElementById("train").textContent);
const PLACE = document.getElementById("downloads");
if (PLACE) {
  const names = ["step", "epoch", "seconds", "train_loss", "validation_loss", "validation_metric", "lr"];
  offer(PLACE, [
    ["Save as CSV", "curve.csv", "text/csv", csv([names, ...DATA.curve.map((point) => names.map((name) => point[name] ?? ""))])],
    ["Save all as JSON", "train.json", "application/json", JSON.stringify(DATA, null, 1)],
  ]);
}
