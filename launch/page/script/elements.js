// Elements made from data. Whatever is text becomes a text node: nothing here, or below, reads markup.

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// 12345.6 -> "12,346"
function whole(number) {
  return Math.round(number).toLocaleString("en-US");
}

// A part of a whole: "93.8%"
function percent(part, all) {
  if (!all) return "–";
  const share = (100 * part) / all;
  return `${share > 0 && share < 0.1 ? "<0.1" : share < 100 && share > 99.9 ? ">99.9" : share.toFixed(1)}%`;
}

// A score, as short as four digits tell it.
function short(number) {
  if (number === null || Number.isNaN(number)) return "none";
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
  if (Number.isInteger(number) && Math.abs(number) < 1e15) return number.toLocaleString("en-US");
  const size = Math.abs(number);
  return size >= 1e6 || size < 1e-4 ? number.toExponential(2) : String(Number(number.toPrecision(4)));
}

function bytes(number) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (number < 1000) return `${Number(number.toPrecision(3))} ${unit}`;
    number /= 1000;
  }
  return `${Number(number.toPrecision(3))} TB`;
}

function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
}
