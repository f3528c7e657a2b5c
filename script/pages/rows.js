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
