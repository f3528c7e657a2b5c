// sssdd and dssdd: pictures of a few samples, epoch by epoch

function training_view() {
  const bar = el("div", { class: "bar" });
  const list = el("div", { class: "samples" });
  let samples = [], first = +(state.sample ?? 0) || 0;
  let epoch = data.epochs.indexOf(+state.epoch);
  if (epoch < 0) epoch = data.epochs.length - 1;
  const at_once = () => +(state.size ?? 2);
  let shown = [], redraw = [];

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
    redraw = [];
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
        hover(area, (x, y) => hint_of(sample, group, x, y));
        strip.append(el("figure", { "data-key": what }, area, el("figcaption", {}, ...title_of(title))));
      }
      if (sample.modules?.[group.title]) {
        const [figure, draw] = integrated_figure(sample, group.title);
        strip.append(figure);
        redraw.push(draw);
      }
      card.append(strip);
    }
    return card;
  }

  // The classes that the masks of one row show at a point.
  function hint_of(sample, group, x, y) {
    const grids = sample.grids[data.epochs[epoch]] ?? {};
    const lines = group.columns.filter(([what]) => grids[what])
      .map(([what, title]) => `${title}: ${name_of(class_at(grids[what], x, y))}`);
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
  if (data.rule) bar.append(...rule_controls(() => redraw.forEach((draw) => draw())));
  const box = reload_box();
  if (box) bar.append(box);
  const there = [...new Set(data.samples.flatMap((sample) => sample.classes))].sort((a, b) => a - b);
  main.replaceChildren(note(), bar, legend(there), list);
  on_arrows({ ArrowLeft: () => to_epoch(epoch - 1), ArrowRight: () => to_epoch(epoch + 1),
    ArrowUp: () => to_sample(-1), ArrowDown: () => to_sample(1) });
  choose();
}
