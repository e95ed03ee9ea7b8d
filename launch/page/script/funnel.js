// What came in, what each judge dropped of it, in their order, and failed on, and what other bounds would make of that.

function funnel() {
  const most = N || 1;
  let left = N;
  let stage;
  const rows = [];
  const update = [];
  rows.push(step({ name: "in", left: N, class: "ends" }, most));
  for (const [number, judge] of JUDGES.entries()) {
    // Taggers drop nothing, but may fail.
    if (judge.kind === "tag" && !judge.failed) continue;
    const name = stageName(judge);
    if (name !== stage) rows.push(el("tr", { class: "stage" }, el("th", { colspan: 4, scope: "rowgroup" }, name)));
    stage = name;
    if (judge.kind !== "tag") {
      left -= judge.dropped;
      const row = step({ name: judge.name, dropped: judge.dropped, left, off: judge.off, example: judge.example }, most);
      rows.push(row);
      update.push({ row, number, stored: judge.dropped });
    }
    if (!judge.failed) continue;
    left -= judge.failed;
    rows.push(step({ name: `${judge.name}, failed`, dropped: judge.failed, left, example: judge.raised }, most));
  }
  for (const [name, count, example] of FACTS.others) {
    left -= count;
    rows.push(step({ name, dropped: count, left, example }, most));
  }
  const later = step({ name: "recipe.thresholds", dropped: 0, left }, most);
  later.hidden = true;
  update.push({ row: later, number: RECIPE, stored: 0 });
  rows.push(later, step({ name: "kept", left, class: "ends" }, most));
  const table = el(
    "table",
    { class: "funnel" },
    el("thead", {}, el("tr", {}, ["operator", "left of what came in", "dropped", "left"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows),
  );
  return { node: table, update: (found) => update.forEach((one) => moved(one, found)) };
}

function stageName({ stage, kind }) {
  const name = stage ? `Stage S${stage}` : "Other operators";
  return kind === "whole" ? `${name}, over the whole set` : name;
}

function step({ name, dropped, left, off, example, class: kind }, most) {
  const bar = el("div", { class: "bar", "aria-hidden": "true" }, el("i", { class: "left" }), dropped ? el("i", { class: "lost" }) : null);
  bar.firstChild.style.width = `${(100 * left) / most}%`;
  if (dropped) bar.lastChild.style.width = `max(2px, ${(100 * dropped) / most}%)`;
  const said = off ? el("p", { class: "off" }, `off: ${off}`) : example ? el("p", { class: "example", dir: "auto", title: example }, example) : null;
  return el(
    "tr",
    { class: `${kind || ""}${off ? " is-off" : ""}`, "data-name": name },
    el("th", { scope: "row" }, name),
    el("td", { class: "wide" }, bar, said),
    el("td", { class: dropped ? "number lost" : "number none" }, dropped === undefined ? "" : off ? "off" : dropped ? `−${whole(dropped)}` : "0", el("span", { class: "would" })),
    el("td", { class: "number" }, whole(left)),
  );
}

function moved({ row, number, stored }, found) {
  const would = row.querySelector(".would");
  const now = found ? found.drops[number] : stored;
  const other = Math.round(now) !== stored;
  would.textContent = other ? `→ ${SAMPLE.exact ? "" : "≈ "}${now > 0 ? "−" : ""}${whole(now)}` : "";
  if (number === RECIPE) row.hidden = !other;
}
