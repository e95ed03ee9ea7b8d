// What would be kept with other bounds. A judge's own bound, [operators.X], lets samples without a score through, and those
// of an exempt source, which have no verdict; the first judge that says no drops a sample. A bound of the recipe, [recipe.thresholds], comes after all of them and lets
// nothing through that has no score. Judges without bounds, and those that compare samples, stay with what is stored.

// As numbers of judges: a bound of the recipe drops the row; a judge raised on it, so it stays out.
const RECIPE = JUDGES.length + 1;
const FAILED = JUDGES.length + 2;

// `bounds`: by judge's name { min, max }. `by` row the number of the judge that drops it, -1 if it is kept; and how many
// captions of kept rows may be trained on.
function judged(bounds) {
  const asked = SCORED.map((judge) => rule(judge, bounds[judge.name]));
  const by = new Int16Array(SAMPLE.rows);
  const usable = new Uint8Array(SAMPLE.starts[SAMPLE.rows]);
  let captions = 0;
  for (let row = 0; row < SAMPLE.rows; row++) {
    by[row] = first(asked, row, usable);
    if (by[row] >= 0) continue;
    for (let at = SAMPLE.starts[row]; at < SAMPLE.starts[row + 1]; at++) captions += usable[at];
  }
  return { by, captions };
}

function rule(judge, bounds) {
  const own = { min: -Infinity, max: Infinity };
  const later = { min: -Infinity, max: Infinity };
  for (const bound of ["min", "max"]) (settable(judge, bound) ? own : later)[bound] = bounds[bound];
  return {
    number: JUDGES.indexOf(judge),
    captions: judge.kind === "captions",
    steady: judge.steady,
    own,
    later: later.min > -Infinity || later.max < Infinity ? later : null,
    ...SAMPLE.columns[judge.name],
  };
}

function outside(score, bounds) {
  return score < bounds.min || score > bounds.max;
}

function first(asked, row, usable) {
  const [from, to] = [SAMPLE.starts[row], SAMPLE.starts[row + 1]];
  usable.fill(1, from, to);
  let left = to - from;
  for (const one of asked) {
    if (one.captions) {
      const before = left;
      for (let at = from; at < to; at++) {
        const fails = one.steady ? one.verdicts[row] >= 0 && outside(one.scores[at], one.own) : one.refused[at] === 1;
        if (usable[at] && fails) left -= 1;
        if (fails) usable[at] = 0;
      }
      if (before && !left) return one.number;
    } else if (one.steady && !Number.isNaN(one.scores[row]) ? one.verdicts[row] >= 0 && outside(one.scores[row], one.own) : one.verdicts[row] === 0) {
      return one.number;
    }
  }
  for (const one of asked) {
    if (!one.later) continue;
    if (!one.captions) {
      if (!(one.scores[row] >= one.later.min && one.scores[row] <= one.later.max)) return RECIPE;
      continue;
    }
    let some = false;
    for (let at = from; at < to; at++) {
      if (!(one.scores[at] >= one.later.min && one.scores[at] <= one.later.max)) usable[at] = 0;
      some = some || usable[at] === 1;
    }
    if (!some) return RECIPE;
  }
  return -1;
}

const STORED = Object.fromEntries(SCORED.map((judge) => [judge.name, startBounds(judge)]));
const BEFORE = judged(STORED);
// Rows that the stored scores and bounds do not explain: they stay as they are.
const HELD = Uint8Array.from(BEFORE.by, (by, row) => (by === SAMPLE.by[row] ? 0 : 1));

// What becomes of the set: counted where all rows are at hand, else estimated, `error` at 95%.
function outcome(bounds) {
  const { by, captions } = judged(bounds);
  const drops = new Array(FAILED + 1).fill(0);
  let [gained, lost, uncompared] = [0, 0, 0];
  for (let row = 0; row < SAMPLE.rows; row++) {
    const now = HELD[row] ? SAMPLE.by[row] : by[row];
    if (now >= 0) drops[now] += 1;
    if (now < 0 && SAMPLE.by[row] >= 0) gained += 1;
    if (now >= 0 && SAMPLE.by[row] < 0) lost += 1;
    if (now < 0 && SAMPLE.by[row] >= 0) uncompared += WHOLE.some((one) => one.verdicts[row] < 0) ? 1 : 0;
  }
  const scale = SAMPLE.rows ? N / SAMPLE.rows : 0;
  // The kept are known exactly; only the change is estimated. A change that the sample does not meet may still be there
  // in up to three rows of as many as it has ("rule of three"), and samples of small sets know most of it.
  const moved = gained + lost;
  const known = Math.sqrt(Math.max(0, 1 - SAMPLE.rows / N));
  return {
    kept: FACTS.index.kept + (gained - lost) * scale,
    gained: gained * scale,
    lost: lost * scale,
    uncompared: uncompared * scale,
    drops: drops.map((count) => count * scale),
    captions: (captions - BEFORE.captions) * scale,
    error: SAMPLE.exact ? 0 : scale * (1.96 * Math.sqrt(moved) + 3) * known,
  };
}

const WHOLE = JUDGES.filter((judge) => judge.kind === "whole" && SAMPLE.columns[judge.name]).map(
  (judge) => SAMPLE.columns[judge.name],
);
