// Curves of a training run, drawn as SVG.

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(+(n * step).toPrecision(8));
  return found;
}

function chart(content) {
  const width = 440, height = 220, left = 46, right = 10, top = 8, bottom = 24;
  const xs = content.series.flatMap((s) => s.points.map((p) => p[0])), ys = content.series.flatMap((s) => s.points.map((p) => p[1]));
  const x1 = Math.max(...xs, 1e-9);
  let y0 = Math.min(0, ...ys), y1 = Math.max(...ys);
  if (content.title.startsWith("mIoU")) y0 = Math.max(0, Math.min(...ys) - 5);
  if (y1 <= y0) y1 = y0 + 1;
  const x_of = (x) => left + (x / x1) * (width - left - right), y_of = (y) => top + (1 - (y - y0) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${content.stage}: ${content.title}` });
  for (const y of ticks(y0, y1)) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y_of(y), y2: y_of(y) }),
      svg("text", { x: left - 6, y: y_of(y) + 4, "text-anchor": "end" }, String(y)));
  }
  for (const x of ticks(0, x1)) if (Number.isInteger(x)) picture.append(svg("text", { x: x_of(x), y: height - 6, "text-anchor": "middle" }, String(x)));
  const dashes = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];
  const list = el("ul", { class: "legend" });
  content.series.forEach((series, n) => {
    const style = { stroke: `var(--s${n % 6})`, "stroke-dasharray": dashes[n % 6] };
    const line = series.points.map(([x, y], i) => `${i ? "L" : "M"}${x_of(x).toFixed(1)} ${y_of(y).toFixed(1)}`).join("");
    picture.append(svg("path", { d: line, ...style }));
    if (series.points.length === 1) picture.append(svg("circle", { cx: x_of(series.points[0][0]), cy: y_of(series.points[0][1]), r: 3, fill: style.stroke }));
    const sample = svg("svg", { viewBox: "0 0 26 8", style: "display:inline-block;width:26px;margin-right:.4em" }, svg("path", { d: "M0 4H26", ...style }));
    list.append(el("li", {}, sample, `${series.name} ${series.points.at(-1)[1]}`));
  });
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  picture.append(cursor);
  hover(picture, (share) => {
    const x = Math.max(0, Math.min(x1, ((share * width - left) / (width - left - right)) * x1));
    cursor.setAttribute("x1", x_of(x));
    cursor.setAttribute("x2", x_of(x));
    cursor.setAttribute("visibility", "visible");
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    return [`epoch ${x.toFixed(1)}`, ...content.series.map((s) => `${s.name}: ${near(s.points)[1]}`)].join("\n");
  });
  picture.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  return el("article", { class: "card" }, el("h3", {}, content.title), picture, list);
}
