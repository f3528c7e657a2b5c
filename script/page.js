"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
const hint = document.getElementById("hint");
const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// What is chosen stands in the address, so that reloading or sharing it keeps the view.
function remember(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", "#" + new URLSearchParams(state));
}

function name_of(index) {
  return index === 255 ? "unknown" : data.classes[index]?.name ?? "class " + index;
}

// Small copies of masks, to name the class under the pointer: pictures read from disk cannot be asked for pixels.
const unpacked = new Map();
function class_at(grid, x, y) {
  if (!unpacked.has(grid)) {
    unpacked.set(grid, grid.split(",").flatMap((run) => Array(+run.split("*")[1]).fill(+run.split("*")[0])));
  }
  const cells = unpacked.get(grid), side = Math.sqrt(cells.length);
  const place = (share) => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
  return cells[place(y) * side + place(x)];
}

function hover(area, lines_at) {
  const show = (event) => {
    const box = area.getBoundingClientRect();
    const text = lines_at((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    hint.hidden = !text;
    hint.textContent = text;
    const left = Math.min(event.clientX + 14, innerWidth - hint.offsetWidth - 8);
    hint.style.left = Math.max(4, left) + "px";
    const below = event.clientY + 18;
    hint.style.top = (below + hint.offsetHeight > innerHeight ? event.clientY - hint.offsetHeight - 12 : below) + "px";
  };
  for (const kind of ["pointermove", "pointerdown"]) area.addEventListener(kind, show);
  for (const end of ["pointerleave", "pointercancel"]) area.addEventListener(end, () => { hint.hidden = true; });
}

function select(name, title, options, chosen, changed) {
  const list = el("select", { id: name, onchange: () => changed(list.value) });
  for (const [value, text] of options) list.append(el("option", { value }, text));
  list.value = chosen;
  if (list.selectedIndex < 0) list.selectedIndex = 0;
  return el("label", { for: name }, title, list);
}

function stepper(name, what, step) {
  const count = el("span", { class: "count", id: name + "-count" });
  const before = el("button", { id: name + "-before", type: "button", title: "previous " + what, "aria-label": "previous " + what,
    onclick: () => step(-1) }, name === "sample" ? "▲" : "◀");
  const after = el("button", { id: name + "-after", type: "button", title: "next " + what, "aria-label": "next " + what,
    onclick: () => step(1) }, name === "sample" ? "▼" : "▶");
  return { box: el("span", {}, before, count, after), count, before, after };
}

function on_arrows(keys) {
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(SELECT|INPUT)$/.test(event.target.tagName)) return;
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
}

function class_filter(lists, changed) {
  const there = [...new Set(lists.flat())].sort((a, b) => a - b);
  const count = (c) => lists.filter((list) => list.includes(c)).length;
  const options = [["", `all classes (${lists.length})`], ...there.map((c) => [String(c), `${name_of(c)} (${count(c)})`])];
  return select("class", "class", options, state.class ?? "", changed);
}

function legend(classes) {
  const list = el("ul", { class: "legend" });
  const entry = (colour, text) => {
    const swatch = el("i");
    swatch.style.background = colour;
    list.append(el("li", {}, swatch, text));
  };
  for (const c of [0, ...classes]) entry(data.classes[c].colour, name_of(c));
  if (data.columns?.some((column) => column.key === "wrong")) {
    for (const [text, colour] of Object.entries(data.wrong)) entry(colour, text);
  }
  if (data.scale) list.append(el("li", { class: "scale" }, data.scale + ": 0", el("b"), "1"));
  return list;
}

function picture(url, size, photo, lazy = true) {
  const [width, height] = size ?? [];
  return el("img", { src: url, width, height, loading: lazy ? "lazy" : null, decoding: "async", alt: "", class: photo ? "photo" : null });
}

function reload_box() {
  if (!data.running) return null;
  const box = el("input", { type: "checkbox", id: "reload", onchange: () => remember({ reload: box.checked ? "1" : "0" }) });
  box.checked = state.reload !== "0";
  setInterval(() => { if (box.checked) location.reload(); }, 60000);
  return el("label", {}, box, "reload every minute");
}

function note() {
  return el("p", { class: "note" }, data.note);
}

// labels and val: one row of pictures an image, sorted, filtered, in pages

function rows_view() {
  const bar = el("div", { class: "bar" });
  const list = el("div", { id: "rows" });
  const scored = Object.keys(data.scores).filter((key) => data.rows.some((row) => row.scores[key]));
  let rows = [], first = +(state.from ?? 0) || 0;
  const size = () => +(state.size ?? 20);
  const score = (row, key) => row.scores[key]?.[state.class || "all"];

  function choose() {
    rows = data.rows.filter((row) => !state.class || row.classes.includes(+state.class));
    const [key, direction] = (state.sort ?? (data.first && scored.includes(data.first) ? data.first + " up" : "")).split(" ");
    if (key) {
      const sign = direction === "up" ? 1 : -1;
      const value = (row) => score(row, key) ?? Infinity * sign;
      rows = rows.map((row) => [value(row), row]).sort((a, b) => (a[0] === b[0] ? 0 : sign * (a[0] - b[0]))).map((pair) => pair[1]);
    }
    first = Math.min(first, Math.max(0, rows.length - 1));
    first -= first % size();
  }

  function show() {
    const last = Math.min(first + size(), rows.length);
    steps.count.textContent = rows.length ? `${first + 1}–${last} of ${rows.length}` : "none";
    steps.before.disabled = first === 0;
    steps.after.disabled = last >= rows.length;
    list.replaceChildren(...rows.slice(first, last).map(row_card));
  }

  function step(by) {
    const next = first + by * size();
    if (next < 0 || next >= rows.length) return;
    first = next;
    remember({ from: first });
    show();
    scrollTo({ top: 0 });
  }

  function set(changes) {
    first = 0;
    remember({ ...changes, from: 0 });
    choose();
    show();
  }

  function row_card(row) {
    const card = el("article", { class: "card" }, el("header", {}, el("b", {}, row.id),
      el("span", {}, row.classes.map(name_of).join(", "))));
    const strip = el("div", { class: "strip" });
    for (const column of data.columns) {
      const figure = el("figure", { "data-key": column.key });
      if (row.missing.includes(column.key)) {
        figure.append(el("div", { class: "none" }, "none"));
      } else {
        const url = column.before + row.id + column.after;
        const area = el("a", { href: url, target: "_blank", rel: "noopener" });
        if (column.over) {
          const under = data.columns.find((other) => other.key === column.over);
          const below = picture(under.before + row.id + under.after, row.size, true);
          below.classList.add("under");
          area.append(below);
        }
        const above = picture(url, row.size, column.key === "image");
        above.alt = `${column.title} of ${row.id}`;
        if (column.over) above.classList.add("over");
        area.append(above);
        hover(area, (x, y) => data.columns.filter((c) => row.grids[c.key])
          .map((c) => `${c.title}: ${name_of(class_at(row.grids[c.key], x, y))}`).join("\n"));
        figure.append(area);
      }
      const caption = el("figcaption", {}, column.title);
      const value = score(row, column.key);
      if (value !== undefined) caption.append(" ", el("strong", {}, `${value.toFixed(1)} %`));
      figure.append(caption);
      strip.append(figure);
    }
    card.append(strip);
    return card;
  }

  const steps = stepper("page", "page", step);
  const sorts = [["", "order of the list"]];
  for (const key of scored) {
    sorts.push([key + " up", `IoU of ${data.scores[key]}, worst first`], [key + " down", `IoU of ${data.scores[key]}, best first`]);
  }
  state.sort ??= data.first && scored.includes(data.first) ? data.first + " up" : "";
  bar.append(steps.box,
    class_filter(data.rows.map((row) => row.classes), (value) => set({ class: value })),
    select("sort", "sort", sorts, state.sort, (value) => set({ sort: value })),
    select("size", "at once", ["10", "20", "50"].map((n) => [n, n]), String(size()), (value) => set({ size: value })));
  main.replaceChildren(note(), bar, legend([...new Set(data.rows.flatMap((row) => row.classes))].sort((a, b) => a - b)), list);
  on_arrows({ ArrowLeft: () => step(-1), ArrowRight: () => step(1) });
  choose();
  show();
}

// sssdd and dssdd: pictures of a few samples, epoch by epoch

function training_view() {
  const bar = el("div", { class: "bar" });
  const list = el("div", { class: "samples" });
  let samples = [], first = +(state.sample ?? 0) || 0;
  let epoch = data.epochs.indexOf(+state.epoch);
  if (epoch < 0) epoch = data.epochs.length - 1;
  const at_once = () => +(state.size ?? 2);
  let shown = [];

  const url = (sample, what) => what === "photo" ? `${data.pictures}${sample.id}.jpg` : what === "truth" ? sample.truth
    : sample.grids[data.epochs[epoch]] ? `${data.pictures}${sample.id}_${String(data.epochs[epoch]).padStart(4, "0")}_${what}.png` : null;

  function choose() {
    samples = data.samples.filter((sample) => !state.class || sample.classes.includes(+state.class));
    first = Math.max(0, Math.min(first, samples.length - 1));
    show();
  }

  function show() {
    const visible = samples.slice(first, first + at_once());
    shown = [];
    list.classList.toggle("one", visible.length < 2);
    list.replaceChildren(...visible.map(sample_card));
    sample_steps.count.textContent = samples.length ? `sample ${first + 1}${visible.length > 1 ? "–" + (first + visible.length) : ""} of ${samples.length}` : "none";
    sample_steps.before.disabled = first === 0;
    sample_steps.after.disabled = first + at_once() >= samples.length;
    update();
  }

  // Changing the epoch changes the pictures in place, so that nothing jumps or flickers.
  function update() {
    slider.value = epoch;
    epoch_steps.count.textContent = `epoch ${data.epochs[epoch]} of ${data.epochs.at(-1)}`;
    epoch_steps.before.disabled = epoch === 0;
    epoch_steps.after.disabled = epoch === data.epochs.length - 1;
    for (const [image, sample, what] of shown) {
      const address = url(sample, what);
      if (!address) image.removeAttribute("src");
      else if (image.getAttribute("src") !== address) image.src = address;
      image.parentNode.href = address ?? "#";
      image.alt = `${what} of ${sample.id}`;
    }
    remember({ epoch: data.epochs[epoch], sample: first });
  }

  function to_epoch(place) {
    epoch = Math.max(0, Math.min(place, data.epochs.length - 1));
    update();
  }

  function to_sample(by) {
    const next = first + by * at_once();
    if (next >= samples.length) return;
    first = Math.max(0, next);
    show();
  }

  function title_of(text) {
    const parts = text.split(/_([KA])/);
    return parts.map((part, n) => (n % 2 ? el("sub", {}, part) : part));
  }

  function sample_card(sample) {
    const card = el("article", { class: "card" }, el("header", {}, el("b", {}, sample.id),
      el("span", {}, sample.classes.map(name_of).join(", "))));
    for (const group of data.groups) {
      if (group.title) card.append(el("h3", {}, group.title));
      const strip = el("div", { class: "strip" });
      for (const [what, title] of group.columns) {
        if (what === "truth" && !sample.truth) continue;
        const image = picture(undefined, [1, 1], what === "photo", false);
        image.dataset.square = "";
        const area = el("a", { target: "_blank", rel: "noopener" }, image);
        shown.push([image, sample, what]);
        hover(area, (x, y) => hint_of(sample, what, x, y));
        strip.append(el("figure", { "data-key": what }, area, el("figcaption", {}, ...title_of(title))));
      }
      card.append(strip);
    }
    return card;
  }

  function hint_of(sample, what, x, y) {
    const lines = [];
    const module = /\d/.exec(what)?.[0];
    const grids = sample.grids[data.epochs[epoch]] ?? {};
    const titles = module ? { ["k" + module]: "K", ["a" + module]: "A", ["d" + module]: "integrated" } : {};
    if (!module) for (const [key, title] of data.groups[0].columns) if (grids[key]) titles[key] = title;
    for (const [key, title] of Object.entries(titles)) if (grids[key]) lines.push(`${title}: ${name_of(class_at(grids[key], x, y))}`);
    if (sample.truth_grid) lines.push(`true mask: ${name_of(class_at(sample.truth_grid, x, y))}`);
    return lines.join("\n");
  }

  const epoch_steps = stepper("epoch", "epoch", (by) => to_epoch(epoch + by));
  const sample_steps = stepper("sample", "samples", to_sample);
  const slider = el("input", { type: "range", id: "epoch-slider", min: 0, max: data.epochs.length - 1, "aria-label": "epoch",
    oninput: () => to_epoch(+slider.value) });
  bar.append(epoch_steps.box, slider, sample_steps.box,
    select("size", "at once", ["1", "2", "4", "8"].map((n) => [n, n]), String(at_once()), (value) => { remember({ size: value }); show(); }),
    class_filter(data.samples.map((sample) => sample.classes), (value) => { first = 0; remember({ class: value }); choose(); }));
  const box = reload_box();
  if (box) bar.append(box);
  const there = [...new Set(data.samples.flatMap((sample) => sample.classes))].sort((a, b) => a - b);
  main.replaceChildren(note(), bar, legend(there), list);
  on_arrows({ ArrowLeft: () => to_epoch(epoch - 1), ArrowRight: () => to_epoch(epoch + 1),
    ArrowUp: () => to_sample(-1), ArrowDown: () => to_sample(1) });
  choose();
}

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

document.querySelector("[aria-current]").scrollIntoView({ inline: "center", block: "nearest" });
if (data.view === "nothing") main.replaceChildren(el("p", { class: "note" }, data.reason));
else ({ rows: rows_view, training: training_view, index: index_view })[data.view]();
