// ledger: figures here beside known ones, and the causes where they part

function ledger_view() {
  const figure = (value) => (value === null ? "–" : value.toFixed(1));
  const rows = data.rows.map((row) => {
    const bad = !["as expected", "done", "nothing to compare with"].includes(row.verdict) && !row.verdict.startsWith("no true");
    return [row.title, row.what || "–", figure(row.here), row.low === null ? "–" : `${figure(row.low)} – ${figure(row.high)}`,
      el("td", {}, ...row.known.map((text) => el("div", {}, text))), row.images ? `${row.split}, ${row.images}` : "–", row.background || "–",
      row.crf || "–", el("td", {}, bad ? el("strong", {}, row.verdict) : row.verdict)];
  });
  const parts = [note(), table(["stage", "what", "here", "good", "known", "images", "background", "CRF", "verdict"], rows)];
  if (data.findings.length) {
    parts.push(el("h2", {}, "Causes, the likeliest first"), el("ol", {}, ...data.findings.map((finding) =>
      el("li", {}, `${finding.cause}: ${finding.text} `, el("code", {}, finding.command)))));
  }
  if (data.missing) parts.push(el("p", { class: "note" }, data.missing));
  main.replaceChildren(...parts);
}
