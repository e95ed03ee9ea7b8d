// The page's data, as launch/page/facts.py packs it.

const FACTS = JSON.parse(document.getElementById("facts").textContent);
const JUDGES = FACTS.judges;
const SCORED = JUDGES.filter((judge) => judge.sides);
const N = FACTS.index.rows;

function unpacked(text, Kind) {
  const raw = atob(text);
  const held = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at++) held[at] = raw.charCodeAt(at);
  return new Kind(held.buffer);
}

// The rows that sliders count with. `by`: the number of the judge that dropped a row, -1 if it is kept; more in keep.js.
const SAMPLE = (() => {
  const packed = FACTS.sample;
  const captions = unpacked(packed.captions, Int32Array);
  const starts = new Int32Array(captions.length + 1);
  captions.forEach((count, row) => (starts[row + 1] = starts[row] + count));
  const columns = {};
  for (const [name, column] of Object.entries(packed.columns)) {
    columns[name] = { scores: unpacked(column.scores, Float64Array), verdicts: unpacked(column.verdicts, Int8Array) };
    if (column.refused) columns[name].refused = unpacked(column.refused, Int8Array);
  }
  return { rows: packed.rows, exact: packed.rows === packed.of, starts, by: unpacked(packed.by, Int16Array), columns };
})();

// The bounds that the index was judged by; no bound is an infinite one.
function startBounds(judge) {
  const bounds = judge.steady ? judge.bounds : {};
  return { min: bounds.min ?? -Infinity, max: bounds.max ?? Infinity };
}

// Whether a bound can be set where the judge is asked; otherwise only where the recipe selects.
function settable(judge, bound) {
  return judge.steady && bound in judge.bounds;
}
