// A page that follows a run: what its server tells is shown, and the page read again when something new is recorded.

const live = document.getElementById("live");
const told = new EventSource("events");
told.onmessage = (event) => {
  const said = JSON.parse(event.data);
  live.textContent = said.says;
  if (said.mark !== live.dataset.mark) location.reload();
};
told.onerror = () => { live.textContent = "The watcher has ended; this page stays as it is."; };
