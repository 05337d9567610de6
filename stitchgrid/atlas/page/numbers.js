/* Numbers as text. */

const grouped = new Intl.NumberFormat("en");
const plural = (number, noun) => `${grouped.format(number)} ${noun}${number === 1 ? "" : "s"}`;
const spelled = (value) => value > 0 ? "∞" : value < 0 ? "−∞" : "–";

/** A value with the six digits that the page keeps of every number. */
const exact = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(6))) : spelled(value);

/** Three digits, as in the command `answer`; a rounding error is 0. */
function short(value) {
  if (!Number.isFinite(value)) return spelled(value);
  if (Math.abs(value) < 1e-9) return "0";
  return String(Number(value.toPrecision(3)));
}

/** A number that fits into a square. */
function brief(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return spelled(value);
  if (size >= 1e4) return value.toExponential(0).replace("e+", "e");
  return value.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0).replace("-", "−");
}

const interval = (low, high) => Number.isFinite(low) && Number.isFinite(high) ? `${short(low)} to ${short(high)}` : "";

/** Round numbers between low and high; the ends are included if they are round. */
function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/** A text cut at its beginning, because names of layers and seeds differ at their ends. */
const tail = (name, length) => name.length <= length ? name : "…" + name.slice(1 - length);
