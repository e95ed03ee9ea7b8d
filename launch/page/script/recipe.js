// The lines of a recipe that say what the sliders do.

function toml(bounds) {
  const operators = [];
  const thresholds = [];
  for (const judge of SCORED) {
    const [mine, start] = [bounds[judge.name], STORED[judge.name]];
    const moved = ["min", "max"].filter((bound) => mine[bound] !== start[bound]);
    const own = moved.filter((bound) => settable(judge, bound));
    const later = moved.filter((bound) => !settable(judge, bound) && Number.isFinite(mine[bound]));
    const said = (bound) => `${bound} = ${literal(Number.isFinite(mine[bound]) ? mine[bound] : endOf(judge, bound))}`;
    if (own.length) operators.push(`[operators.${key(judge.name)}]\n${own.map(said).join("\n")}`);
    if (later.length) thresholds.push(`${key(judge.name)} = { ${later.map(said).join(", ")} }`);
  }
  const parts = operators;
  if (thresholds.length) parts.push(`[recipe.thresholds]\n${thresholds.join("\n")}`);
  return parts.join("\n\n");
}

// A number that lets every score through.
function endOf(judge, bound) {
  return bound === "min" ? judge.range[0] : judge.range[1];
}

function literal(number) {
  const text = String(number);
  // TOML wants a digit on both sides of a point, and JavaScript writes 1e+21.
  return text.replace("e+", "e");
}

function key(name) {
  return /^[A-Za-z0-9_-]+$/.test(name) ? name : JSON.stringify(name);
}
