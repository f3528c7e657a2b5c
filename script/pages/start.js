document.querySelector("[aria-current]").scrollIntoView({ inline: "center", block: "nearest" });
if (data.view === "nothing") main.replaceChildren(el("p", { class: "note" }, data.reason));
else ({ rows: rows_view, training: training_view, index: index_view, ledger: ledger_view })[data.view]();
