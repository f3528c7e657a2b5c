// sssdd and dssdd: the integration of the last epoch, made anew in the page with another bias, without flags or without maps

const rule = {
  bias: +(state.bias ?? data.rule?.bias), bg: +(state.bg ?? data.rule?.bg),
  maps: state.maps !== "0", flags: state.flags !== "0",
};
const UNKNOWN = 255;

// Masks come as runs "class*length", σ(d_K) − σ(d_A) as 16-bit numbers in steps of 1/32767.
function unpack_masks(row) {
  const bytes = Uint8Array.from(atob(row.score), (c) => c.charCodeAt(0));
  return { k: cells_of(row.k), a: cells_of(row.a), truth: row.truth && cells_of(row.truth), score: new Int16Array(bytes.buffer) };
}

// Labelled foreground classes of which the advice keeps less than half the pixels, as models.ssdd.difference has it.
function lost_classes(k, a, present) {
  const pixels = (mask, c) => mask.reduce((n, value) => n + (value === c), 0);
  return new Set(present.filter((c) => c > 0 && pixels(a, c) / Math.max(pixels(k, c), 1) < 0.5));
}

// w = σ(d_K) − σ(d_A) + bias − bg·[K=0] + bg·[A=0] − flag(K) + flag(A); the advice where w ≥ 0, the known one where only one is.
function integrated_mask({ k, a, score }, present, { bias, bg, maps, flags }) {
  const lost = flags ? lost_classes(k, a, present) : new Set();
  return k.map((own, n) => {
    const other = a[n];
    if (own === UNKNOWN || other === UNKNOWN) return own === UNKNOWN ? other : own;
    const w = (maps ? score[n] / 32767 : 0) + bias - bg * (own === 0) + bg * (other === 0) - lost.has(own) + lost.has(other);
    return w >= 0 ? other : own;
  });
}

// Mean IoU in percent of the classes that the true mask has; NaN without one.
function mean_iou_of(mask, truth) {
  const both = {}, either = {};
  truth.forEach((t, n) => {
    if (t === UNKNOWN) return;
    if (t === mask[n]) both[t] = (both[t] ?? 0) + 1;
    for (const c of new Set([t, mask[n]])) either[c] = (either[c] ?? 0) + 1;
  });
  const there = [...new Set(truth)].filter((c) => c !== UNKNOWN);
  return (100 * there.reduce((sum, c) => sum + (both[c] ?? 0) / either[c], 0)) / there.length;
}

// The picture of one sample's module under the rule, and a function that draws it anew.
function integrated_figure(sample, key) {
  const row = sample.modules[key], masks = unpack_masks(row);
  const canvas = el("canvas", { width: row.size[1], height: row.size[0] }), caption = el("figcaption");
  const pen = canvas.getContext("2d");
  const percent = (mask) => (masks.truth ? `${mean_iou_of(mask, masks.truth).toFixed(1)} %` : "–");
  const draw = () => {
    const mask = integrated_mask(masks, row.present, rule);
    mask.forEach((c, n) => {
      pen.fillStyle = data.classes[c]?.colour ?? "#fff";
      pen.fillRect(n % row.size[1], Math.floor(n / row.size[1]), 1, 1);
    });
    canvas.dataset.mask = mask.join(",");
    caption.replaceChildren("by your rule ", el("strong", {}, percent(mask)), ` (K ${percent(masks.k)}, A ${percent(masks.a)})`);
  };
  draw();
  return [el("figure", { "data-key": "own" }, canvas, caption), draw];
}

// Sliders and switches of the rule; `changed` is called after each move.
function rule_controls(changed) {
  const set = (name, value) => {
    rule[name] = value;
    remember({ [name]: typeof value === "boolean" ? +value : value });
    changed();
  };
  const slider = (name, title, low, high) => {
    const shown = el("span", { class: "count", id: `${name}-shown` }, rule[name].toFixed(2));
    const range = el("input", { type: "range", id: name, min: low, max: high, step: 0.05, value: rule[name],
      oninput: () => { shown.textContent = (+range.value).toFixed(2); set(name, +range.value); } });
    return el("label", { for: name }, title, range, shown);
  };
  const box = (name, title) => {
    const tick = el("input", { type: "checkbox", id: name, onchange: () => set(name, tick.checked) });
    tick.checked = rule[name];
    return el("label", {}, tick, title);
  };
  return [slider("bias", "bias", -1, 1), slider("bg", "background term", 0, 1), box("maps", "difference maps"), box("flags", "flags")];
}
