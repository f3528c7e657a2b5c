// index: stages, curves, results, settings

function time_of(seconds) {
  if (!seconds) return "–";
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function table(head, rows, kind) {
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell) => (cell instanceof Node ? cell : el("td", {}, cell)))));
  return el("div", { class: "wide" }, el("table", { class: kind }, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", {}, text)))),
    el("tbody", {}, ...body)));
}

function index_view() {
  const parts = [note()];
  const box = reload_box();
  if (box) parts.push(box);
  for (const found of data.results) {
    const head = ["mIoU, %", ...found.classes];
    const best = [found.rows.map((row) => row.miou), ...found.classes.map((_, n) => found.rows.map((row) => row.iou[n]))].map((list) => Math.max(...list));
    const cell = (value, n) => el("td", { class: found.rows.length > 1 && value === best[n] ? "best" : null }, value === null ? "–" : (100 * value).toFixed(1));
    parts.push(el("h2", {}, `Results: ${found.file}` + (found.images ? `, ${found.images} images` : "")),
      table(["", ...head], found.rows.map((row) => [row.name, ...[row.miou, ...row.iou].map(cell)])));
  }
  parts.push(el("h2", {}, "Stages"), table(["stage", "state", "time", "images/s", "peak memory"],
    data.stages.map((s) => [s.stage, s.state, time_of(s.seconds), s.rate ? s.rate.toFixed(1) : "–", s.memory ? s.memory.toFixed(2) + " GiB" : "–"])));
  for (const stage of [...new Set(data.curves.map((c) => c.stage))].reverse()) {
    parts.push(el("h2", {}, stage), el("div", { class: "charts" }, ...data.curves.filter((c) => c.stage === stage).map(chart)));
  }
  const rows = (list) => table(["setting", "value", "meaning"], list.map((s) => [s.name, s.value || "–", s.help]), "settings");
  parts.push(el("h2", {}, "Config"), el("p", { class: "note" }, "What differs from the published setting:"), rows(data.settings.filter((s) => s.changed)),
    el("details", {}, el("summary", {}, "all settings"), rows(data.settings)));
  main.replaceChildren(...parts);
}
