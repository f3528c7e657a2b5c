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
function cells_of(runs) {
  return runs.split(",").flatMap((run) => Array(+run.split("*")[1]).fill(+run.split("*")[0]));
}

function class_at(grid, x, y) {
  if (!unpacked.has(grid)) unpacked.set(grid, cells_of(grid));
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
