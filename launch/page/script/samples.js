// Samples as people look at them: a thumbnail with a line below, and all that is known of one in a dialog.

function thumbnail(number, line, note) {
  const row = FACTS.shown[number];
  const veiled = row.by === "nsfw" || note === "nsfw";
  const label = `${row.key}, ${row.kept ? "kept" : `dropped by ${row.by}`}`;
  return el(
    "button",
    { type: "button", class: `shot${row.kept ? "" : " out"}${veiled ? " veiled" : ""}`, title: label, click: () => detail(number) },
    picture(row),
    line ? el("span", { class: "number" }, line) : null,
  );
}

function picture(row) {
  if (row.picture) return el("img", { src: row.picture, alt: row.key, loading: "lazy", decoding: "async" });
  return el("span", { class: "missing", title: row.why }, row.why.length > 60 ? `${row.why.slice(0, 60)}…` : row.why);
}

function captionText(caption) {
  const more = caption.more ? ` … and ${whole(caption.more)} more characters` : "";
  return el("span", { class: "words", dir: "auto" }, caption.text, more ? el("i", {}, more) : null);
}

function detail(number) {
  const row = FACTS.shown[number];
  const scores = SCORED.filter((judge) => judge.kind !== "captions").map((judge) =>
    el("tr", {}, el("th", { scope: "row" }, judge.name), el("td", {}, short(row.scores[judge.name]))),
  );
  const ofCaptions = SCORED.filter((judge) => judge.kind === "captions");
  const captions = row.captions.map((caption, place) =>
    el(
      "div",
      { class: `caption${caption.kept ? "" : " out"}` },
      el("p", { class: "meta" }, `${caption.split} · ${whole(caption.tokens)} tokens${caption.kept ? "" : ` · ${caption.reason}`}`),
      el("p", {}, captionText(caption)),
      ofCaptions.length
        ? el("p", { class: "meta" }, ofCaptions.map((judge) => `${judge.name} ${short((row.scores[judge.name] || [])[place] ?? null)}`).join(" · "))
        : null,
    ),
  );
  const tags = Object.entries(row.tags).filter(([, tag]) => tag);
  const dialog = el(
    "dialog",
    { "aria-label": row.key, close: () => dialog.remove(), click: (event) => event.target === dialog && dialog.close() },
    el(
      "div",
      { class: "detail" },
      el("div", { class: "side" }, picture(row), el("table", {}, scores)),
      el(
        "div",
        {},
        el("h3", { dir: "auto" }, row.key),
        el("p", { class: "meta" }, `${row.size[0]} × ${row.size[1]} pixels · ${bytes(row.bytes)} · source ${row.source}`),
        el("p", { class: row.kept ? "kept" : "dropped" }, row.kept ? "Kept" : `Dropped by ${row.by}: ${row.reason}`),
        tags.length ? el("p", { class: "meta" }, tags.map(([name, tag]) => `${name}: ${tag}`).join(" · ")) : null,
        captions,
        el("button", { type: "button", class: "plain", click: () => dialog.close() }, "Close"),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}
