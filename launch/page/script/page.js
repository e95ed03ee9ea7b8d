// The page, and the bar below that says what the moved bounds make of the set.

function page() {
  const bounds = Object.fromEntries(SCORED.map((judge) => [judge.name, { ...STORED[judge.name] }]));
  const narrowing = funnel();
  const bar = whatIf(() => cards.forEach((one) => one.reset()));
  let waiting = false;
  const refresh = () => {
    waiting = false;
    const touched = SCORED.some((judge) => ["min", "max"].some((bound) => bounds[judge.name][bound] !== STORED[judge.name][bound]));
    const found = touched ? outcome(bounds) : null;
    narrowing.update(found);
    bar.update(found, toml(bounds));
  };
  const move = (name, mine) => {
    bounds[name] = { ...mine };
    if (!waiting) requestAnimationFrame(refresh);
    waiting = true;
  };
  const cards = SCORED.map((judge) => card(judge, move));
  const off = JUDGES.filter((judge) => judge.off);
  document.body.append(
    heading(),
    el(
      "main",
      {},
      section("funnel", "Funnel", el("p", { class: "lead" }, "Each operator is asked in this order; the first that says no drops a sample."), narrowing.node),
      section(
        "scores",
        "Scores",
        el("p", { class: "lead" }, "Scores are stored as they are: move a bound to see what would be kept. Every picture opens what is known of it."),
        FACTS.pictures ? el("p", { class: "notice" }, `No pictures: ${FACTS.pictures}`) : null,
        off.length ? el("p", { class: "lead" }, "Off, and the funnel says why: ", off.map((judge) => judge.name).join(", "), ".") : null,
        el("div", { class: "cards" }, cards.map((one) => one.node)),
      ),
      section("captions", "Captions", el("div", { class: "cards" }, captions())),
      section("shares", "Shares", el("p", { class: "lead" }, "Of the kept samples, beside those of all that came in."), el("div", { class: "cards" }, FACTS.shares.map(shares))),
      section("mixture", "Mixture", ...mixture()),
    ),
    bar.node,
  );
  refresh();
}

function heading() {
  const { generation, id, rows, kept } = FACTS.index;
  const failed = JUDGES.reduce((sum, judge) => sum + judge.failed, 0);
  const number = (name, value, note, kind) => el("div", { class: kind || "" }, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : null));
  return el(
    "header",
    { class: "top" },
    el("p", { class: "eyebrow" }, "Inkstone · curation"),
    el("h1", {}, generation),
    el("p", { class: "meta id" }, `index ${id.slice(0, 16)}`),
    el("dl", {}, number("in", whole(rows)), number("kept", whole(kept), percent(kept, rows), "kept"), number("dropped", whole(rows - kept - failed), percent(rows - kept - failed, rows), "dropped"), failed ? number("failed", whole(failed), percent(failed, rows), "dropped") : null),
    el("nav", { "aria-label": "Sections" }, ["funnel", "scores", "captions", "shares", "mixture"].map((name) => el("a", { href: `#${name}` }, name))),
  );
}

function whatIf(reset) {
  const said = el("p", { class: "said", role: "status", id: "would-keep" });
  const notes = el("p", { class: "meta" });
  const lines = el("pre", { tabindex: 0, id: "toml", "aria-label": "Lines for a recipe" });
  const copy = el("button", { type: "button", class: "plain" }, "Copy");
  copy.addEventListener("click", async () => {
    getSelection().selectAllChildren(lines);
    try {
      await navigator.clipboard.writeText(lines.textContent);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  const again = el("button", { type: "button", class: "plain", click: reset }, "Reset");
  const recipe = el("details", { open: true }, el("summary", {}, "recipe"), el("div", { class: "toml" }, lines, copy));
  const node = el("aside", { class: "what-if", "aria-label": "With moved bounds", hidden: true }, el("div", { class: "inner" }, el("div", {}, said, notes), recipe, again));
  const update = (found, text) => {
    node.hidden = !found;
    document.body.classList.toggle("moved", Boolean(found));
    if (!found) return said.replaceChildren();
    const about = SAMPLE.exact ? "" : "about ";
    said.replaceChildren(
      "would keep ",
      el("b", {}, `${about}${whole(found.kept)}`),
      ` of ${whole(N)} (${percent(found.kept, N)})`,
      SAMPLE.exact ? "" : ` ± ${whole(found.error)}`,
    );
    const change = [`${whole(found.gained)} more`, `${whole(found.lost)} fewer`];
    if (Math.round(found.captions)) change.push(`${whole(Math.abs(found.captions))} captions ${found.captions > 0 ? "more" : "fewer"}`);
    if (!SAMPLE.exact) change.push(`from a fixed sample of ${whole(SAMPLE.rows)}, at 95%`);
    if (found.uncompared >= 0.5) change.push(`${whole(found.uncompared)} of them not yet compared for duplicates`);
    notes.textContent = change.join(" · ");
    lines.textContent = text;
    return undefined;
  };
  return { node, update };
}

page();
