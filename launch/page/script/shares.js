// Captions by split, and shares: of buckets, sources, classes, and of what the recipe plans.

function captions() {
  return Object.entries(FACTS.captions).map(([name, split]) =>
    el(
      "article",
      { class: "card", "data-split": name },
      el(
        "header",
        {},
        el("h3", {}, name),
        el("span", { class: "grow" }),
        el("span", { class: "meta" }, `${whole(split.count)} captions`),
        el("span", { class: `meta${split.kept < split.count ? " dropped" : ""}` }, `${whole(split.count - split.kept)} refused`),
      ),
      el("p", { class: "meta" }, `tokens: median ${whole(split.tokens.median)}, 95% up to ${whole(split.tokens.p95)}, longest ${whole(split.tokens.longest)}`),
      split.reasons.length ? el("p", { class: "meta" }, split.reasons.map(([by, count]) => `${by} refuses ${whole(count)}`).join(" · ")) : null,
      el("div", { class: "quotes" }, [...split.shown, ...split.refused].map(([row, place]) => quote(row, place, ""))),
    ),
  );
}

function shares(one) {
  const tag = JUDGES.find((judge) => judge.kind === "tag" && judge.name === one.name);
  const rows = one.values.map(([name, all, kept]) => [name || "(not known)", all, kept]);
  if (one.rest[0]) rows.push([`${whole(one.different - one.values.length)} more`, ...one.rest]);
  const [all, kept] = [1, 2].map((column) => rows.reduce((sum, row) => sum + row[column], 0));
  return el(
    "article",
    { class: "card", "data-shares": one.name },
    el("header", {}, el("h3", {}, one.name), el("span", { class: "grow" }), el("span", { class: "meta" }, `${whole(kept)} kept of ${whole(all)}`)),
    tag && tag.off ? el("p", { class: "off" }, `off: ${tag.off}`) : null,
    tag && tag.about ? about(tag.about) : null,
    one.name === "bucket" && !FACTS.recipe.given ? el("p", { class: "meta" }, "by the default recipe; --config counts yours") : null,
    pairs(rows.map(([name, before, after]) => ({ name, first: after / (kept || 1), second: before / (all || 1), said: whole(after) })), "kept", "in"),
  );
}

// Two bars a line: what counts, and what it is held against.
function pairs(rows, first, second) {
  const most = Math.max(1e-9, ...rows.flatMap((row) => [row.first, row.second]));
  const bar = (share, kind) => {
    const inner = el("i", { class: kind });
    inner.style.width = `${(100 * share) / most}%`;
    return inner;
  };
  return el(
    "table",
    { class: "pairs" },
    el("thead", {}, el("tr", {}, el("td"), el("td", { class: "legend" }, el("i", { class: "first" }), first, el("i", { class: "second" }), second), el("th", { scope: "col" }, first), el("th", { scope: "col" }, second))),
    el(
      "tbody",
      {},
      rows.map((row) =>
        el(
          "tr",
          { "data-name": row.name },
          el("th", { scope: "row", dir: "auto", title: row.name }, row.name),
          el("td", { class: "wide" }, el("div", { class: "two", "aria-hidden": "true" }, bar(row.first, "first"), bar(row.second, "second"))),
          el("td", { class: "number", title: row.said || false }, percent(row.first, 1)),
          el("td", { class: "number" }, percent(row.second, 1)),
        ),
      ),
    ),
  );
}

function mixture() {
  const found = FACTS.mixture;
  if (found.why) return [el("p", { class: "notice" }, found.why)];
  const table = (name, rows) =>
    el(
      "article",
      { class: "card", "data-mixture": name },
      el("header", {}, el("h3", {}, `by ${name}`)),
      pairs(rows.map((row) => ({ name: row.name, first: row.planned, second: row.actual })), "planned", "actual"),
    );
  const selection = Object.entries(found.selection).map(([split, counts]) =>
    el("p", { class: "meta" }, `${split}: ${Object.entries(counts).map(([why, count]) => `${whole(count)} ${why}`).join(", ")}`),
  );
  return [
    el("p", {}, `Actual: ${found.actual}. Shares of samples.`),
    el("div", { class: "cards" }, found.tables.map((one) => table(one.name, one.rows))),
    el("details", {}, el("summary", {}, "What the recipe uses of the index"), selection),
  ];
}
