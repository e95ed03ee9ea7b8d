// A histogram with what is kept in one colour and what is refused in another, and lines where they part.

const HIGH = 100; // units of the drawing's height
const LEAST = 1.6; // of a bin that is not empty

// Where a score lies on a judge's axis, 0 to 1, and back.
function axis(judge) {
  const [turn, back] = judge.scale === "log" ? [Math.log, Math.exp] : [(x) => x, (x) => x];
  const [low, high] = [turn(judge.edges[0]), turn(judge.edges[judge.edges.length - 1])];
  return {
    at: (score) => Math.min(1, Math.max(0, (turn(score) - low) / (high - low))),
    score: (at) => back(low + at * (high - low)),
  };
}

// `update(bounds)` draws the line of what is kept anew.
function histogram(judge, description) {
  const scale = axis(judge);
  const { at } = scale;
  const most = Math.max(1, ...judge.counts);
  const bars = (name) =>
    drawn("g", { class: name }, judge.counts.map((count, bin) => bar(judge, at, bin, count, most)));
  const [kept, refused] = [bars("kept"), bars("refused")];
  const id = `inside-${JUDGES.indexOf(judge)}`;
  const inside = drawn("rect", { y: 0, height: HIGH });
  kept.setAttribute("clip-path", `url(#${id})`);
  const lines = drawn("g", { class: "lines" });
  const node = drawn(
    "svg",
    { viewBox: `0 0 1000 ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": description, class: "bars" },
    drawn("clipPath", { id }, inside),
    refused,
    kept,
    lines,
  );
  const update = (bounds) => {
    const [low, high] = parting(judge, bounds).map((score) => place(judge, scale, score) * 1000);
    inside.setAttribute("x", low);
    inside.setAttribute("width", Math.max(0, high - low));
    lines.replaceChildren(...[low, high].filter((x) => x > 0 && x < 1000).map((x) => line(x)));
  };
  return { node: el("div", { class: "chart" }, node, ticks(judge, at)), update };

}

// From where to where scores are kept. Whole numbers part halfway to the next; what lies on a mark is refused.
function parting(judge, bounds) {
  let low = bounds.min > -Infinity ? bounds.min : judge.implied.min ?? -Infinity;
  let high = bounds.max < Infinity ? bounds.max : judge.implied.max ?? Infinity;
  if (judge.whole) [low, high] = [Math.ceil(low) - 0.5, Math.floor(high) + 0.5];
  if (judge.mark !== null && bounds.min === -Infinity) low = judge.whole ? judge.mark + 0.5 : judge.mark;
  return [low, high];
}

function place(judge, scale, score) {
  if (!Number.isFinite(score)) return score < 0 ? 0 : 1;
  return judge.scale === "log" && score <= 0 ? 0 : scale.at(score);
}

function bar(judge, at, bin, count, most) {
  const [from, to] = [at(judge.edges[bin]) * 1000, at(judge.edges[bin + 1]) * 1000];
  const high = count ? Math.max(LEAST, (count / most) * HIGH) : 0;
  const gap = judge.scale === "whole" ? (to - from) * 0.12 : 0;
  const name = judge.scale === "whole" ? short(judge.edges[bin] + 0.5) : `${short(judge.edges[bin])} to ${short(judge.edges[bin + 1])}`;
  const box = { x: from + gap, y: HIGH - high, width: Math.max(0.5, to - from - 2 * gap - 0.6), height: high };
  return drawn("rect", box, drawn("title", {}, `${name}: ${whole(count)}`));
}

function line(x) {
  return drawn("line", { x1: x, x2: x, y1: 0, y2: HIGH, "vector-effect": "non-scaling-stroke" });
}

function ticks(judge, at) {
  const row = el("div", { class: "ticks", "aria-hidden": "true" });
  for (const score of tickScores(judge)) {
    const tick = el("span", {}, tickName(score));
    tick.style.left = `${at(score) * 100}%`;
    row.append(tick);
  }
  return row;
}

function tickName(score) {
  const size = Math.abs(score);
  if (size >= 1e6) return `${short(score / 1e6)}M`;
  return size >= 1e4 ? `${short(score / 1e3)}k` : short(Number(score.toPrecision(6)));
}

// Four to seven round numbers inside of the axis.
function tickScores(judge) {
  const [low, high] = [judge.edges[0], judge.edges[judge.edges.length - 1]];
  if (judge.scale === "log") {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of high / low > 1e4 ? [1] : [1, 3]) found.push(digit * 10 ** power);
    }
    return found.filter((score) => score >= low && score <= high);
  }
  const rough = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((times) => times * unit).find((size) => size >= rough);
  if (judge.scale === "whole") step = Math.max(1, Math.round(step));
  const found = [];
  for (let score = Math.ceil(low / step) * step; score <= high; score += step) found.push(Number(score.toPrecision(12)));
  return found;
}
