// A card for each judge: its scores, its bounds to be moved, and samples on both sides of every line.

const STEPS = 400; // of a slider
const BESIDE = 6; // samples on a side of a line

function card(judge, move) {
  const bounds = { ...STORED[judge.name] };
  const chart = histogram(judge, `Scores of ${judge.name}: ${whole(judge.judged)} from ${short(judge.range[0])} to ${short(judge.range[1])}`);
  const beside = el("div", { class: "beside" });
  const controls = ["min", "max"].map((bound) => control(judge, bound, bounds, () => show(true)));
  const show = (heard) => {
    chart.update(bounds);
    controls.forEach((one) => one.update(bounds));
    beside.replaceChildren(...lines(judge, bounds).map((line) => strip(judge, line)));
    if (heard) move(judge.name, bounds);
  };
  show(false);
  const of = judge.kind === "captions" ? "captions" : "samples";
  const node = el(
    "article",
    { class: `card ${judge.kind}`, id: `score-${judge.name}`, "data-name": judge.name },
    el(
      "header",
      {},
      el("h3", {}, judge.name),
      el("span", { class: "chip" }, judge.stage ? `S${judge.stage}` : "other"),
      el("span", { class: "grow" }),
      el("span", { class: "meta" }, `${whole(judge.judged)} ${of} scored`, judge.unjudged ? `, ${whole(judge.unjudged)} not` : "", judge.spared ? `, ${whole(judge.spared)} exempt` : ""),
      el("span", { class: `meta${judge.refused ? " dropped" : ""}` }, `refuses ${whole(judge.refused)}`),
    ),
    judge.about ? about(judge.about) : null,
    el("div", { class: "plot" }, chart.node, el("div", { class: "sliders" }, controls.map((one) => one.slider))),
    el("div", { class: "bounds" }, controls.map((one) => one.field), judgeNote(judge)),
    beside,
  );
  const reset = () => {
    Object.assign(bounds, STORED[judge.name]);
    show(true);
  };
  return { node, reset };
}

function about(text) {
  const cut = text.indexOf(". ") + 1;
  if (!cut || text.length < 160) return el("p", { class: "about" }, coded(text));
  return el("details", { class: "about" }, el("summary", {}, coded(text.slice(0, cut))), coded(text.slice(cut)));
}

// Names in `backticks` as code.
function coded(text) {
  return text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));
}

function judgeNote(judge) {
  const recipe = FACTS.thresholds[judge.name];
  const said = [];
  if (recipe) said.push(`the recipe selects ${Object.entries(recipe).map(([bound, at]) => `${bound} ${short(at)}`).join(", ")}`);
  if (judge.kind === "whole" && !judge.steady) said.push("compares samples: bounds moved here select, and compare nothing again");
  else if (Object.keys(judge.bounds).length && !judge.steady) said.push("judges by more than its bounds: those moved here select further");
  return said.length ? el("p", { class: "meta" }, said.join(" · ")) : null;
}

// A slider on the chart and a field for the same number.
function control(judge, bound, bounds, changed) {
  const scale = axis(judge);
  const none = bound === "min" ? -Infinity : Infinity;
  const name = `${bound === "min" ? "at least" : "at most"}, ${judge.name}`;
  const slider = el("input", { type: "range", min: 0, max: STEPS, step: 1, class: bound, "aria-label": name });
  const field = el("input", { type: "number", step: "any", placeholder: "none", "aria-label": name });
  const set = (score) => {
    bounds[bound] = score;
    changed();
  };
  slider.addEventListener("input", () => {
    const at = Number(slider.value);
    const open = at === (bound === "min" ? 0 : STEPS);
    set(open ? none : rounded(judge, scale, at / STEPS, bound));
  });
  field.addEventListener("change", () => {
    const score = field.value === "" ? none : Number(field.value);
    if (!Number.isNaN(score)) set(score);
  });
  const update = () => {
    const score = bounds[bound];
    const half = judge.whole ? (bound === "min" ? -0.5 : 0.5) : 0;
    const at = Math.round(place(judge, scale, score + half) * STEPS);
    if (Number(slider.value) !== at && document.activeElement !== slider) slider.value = at;
    slider.setAttribute("aria-valuetext", Number.isFinite(score) ? short(score) : "no bound");
    field.value = Number.isFinite(score) ? String(score) : "";
    field.classList.toggle("moved", score !== STORED[judge.name][bound]);
  };
  const stored = STORED[judge.name][bound];
  const label = el("label", {}, bound === "min" ? "at least" : "at most", field, Number.isFinite(stored) ? el("small", {}, `was ${short(stored)}`) : null);
  slider.value = bound === "min" ? 0 : STEPS;
  return { slider, field: label, update };
}

// The score at a place of the axis, with no more digits than a step of the slider tells apart.
function rounded(judge, scale, at, bound) {
  const score = scale.score(at);
  if (judge.whole || judge.whole_bounds.includes(bound)) return bound === "min" ? Math.ceil(score) : Math.floor(score);
  const step = Math.abs(scale.score(Math.min(1, at + 1 / STEPS)) - scale.score(Math.max(0, at - 1 / STEPS))) / 2;
  return Number(score.toFixed(Math.min(12, Math.max(0, Math.ceil(-Math.log10(step))))));
}

// The lines of a judge as they are now: those that stand where the index was judged with the closest of all samples,
// moved ones with the closest of the samples on this page.
function lines(judge, bounds) {
  const found = [];
  for (const bound of ["min", "max"]) {
    const at = bounds[bound];
    if (!Number.isFinite(at)) continue;
    const stored = judge.sides.filter((side) => side.bound === bound && side.at === at);
    const [below, above] = stored.length ? stored.map((side) => side.items) : closest(judge, bound, at);
    found.push({ bound, at, below, above, moved: !stored.length });
  }
  if (found.length) return found;
  const [below, above] = judge.sides.map((side) => side.items);
  return [{ bound: judge.sides[0].bound, at: judge.sides[0].at, below, above, moved: false }];
}

function closest(judge, bound, at) {
  const items = [];
  for (const [number, row] of Object.entries(FACTS.shown)) {
    const score = row.scores[judge.name];
    for (const [place, one] of (Array.isArray(score) ? score : [score]).entries()) {
      if (one !== null && one !== undefined) items.push([number, place, one]);
    }
  }
  items.sort((a, b) => a[2] - b[2]);
  const cut = items.findIndex((item) => (bound === "min" ? item[2] >= at : item[2] > at));
  const middle = cut < 0 ? items.length : cut;
  return [items.slice(Math.max(0, middle - BESIDE), middle), items.slice(middle, middle + BESIDE)];
}

function strip(judge, line) {
  const mark = line.at !== null && line.at === judge.mark && !line.moved;
  const kept = line.bound === "min" || mark ? "above" : "below";
  const names = {
    below: line.at === null ? "the lowest scores" : `just below ${short(line.at)}`,
    above: line.at === null ? "the highest scores" : `just above ${short(line.at)}`,
  };
  if (line.bound === "min") names.above = `from ${short(line.at)} on`;
  if (line.bound === "max") names.below = `up to ${short(line.at)}`;
  return el(
    "div",
    { class: "strip" },
    ["below", "above"].map((side) => {
      const state = line.at === null ? "" : side === kept ? "kept" : "dropped";
      return el(
        "figure",
        { class: `${side} ${state}` },
        el("figcaption", {}, names[side], state ? el("b", { class: state }, state === "kept" ? "kept" : mark ? "alike" : "refused") : null, line.moved ? el("small", {}, "of this page's samples") : null),
        line[side].length ? items(judge, line[side]) : el("p", { class: "meta" }, "no sample"),
      );
    }),
  );
}

function items(judge, found) {
  if (judge.kind !== "captions") return el("div", { class: "shots" }, found.map(([row, , score]) => thumbnail(row, short(score), judge.name)));
  return el("div", { class: "quotes" }, found.map(([row, place, score]) => quote(row, place, short(score))));
}

function quote(number, place, note) {
  const caption = FACTS.shown[number].captions[place];
  const meta = `${note ? `${note} · ` : ""}${caption.split} · ${whole(caption.tokens)} tokens`;
  return el(
    "div",
    { class: `quote${caption.kept ? "" : " out"}` },
    thumbnail(number, "", ""),
    el("div", {}, el("p", { class: "meta" }, meta, caption.kept || note ? "" : ` · ${caption.reason}`), el("p", { class: "clamp" }, captionText(caption))),
  );
}
