/* Values -> positions on a scale -> colours. Both scales can be read with any kind of colour blindness. */

const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151",
  "#bddf26", "#fde725"];
const PUOR = ["#5e3c99", "#7b66ae", "#998ec3", "#c2bcd9", "#e3e1ea", "#f5f4f2", "#f3dfc4", "#f8bf7a", "#e69a3c", "#cc7716",
  "#a85408"];
const STEPS = 256;

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A table of STEPS colours, three bytes each, mixed between stops. */
function mixed(stops) {
  const table = new Uint8Array(STEPS * 3), ends = stops.map(channels);
  for (let k = 0; k < STEPS; k++) {
    const at = k / (STEPS - 1) * (stops.length - 1), below = Math.min(Math.floor(at), stops.length - 2), share = at - below;
    for (let c = 0; c < 3; c++) table[3 * k + c] = Math.round(ends[below][c] * (1 - share) + ends[below + 1][c] * share);
  }
  return table;
}

const SIMILARITY = mixed(VIRIDIS), DIFFERENCE = mixed(PUOR);
const step = (place) => Math.round(Math.min(Math.max(place, 0), 1) * (STEPS - 1));

function colour(place, table = SIMILARITY) {
  const at = 3 * step(place);
  return `rgb(${table[at]}, ${table[at + 1]}, ${table[at + 2]})`;
}

/** Black or white, whichever is readable on the colour at a position. */
function contrast(place, table = SIMILARITY) {
  const at = 3 * step(place);
  return 0.299 * table[at] + 0.587 * table[at + 1] + 0.114 * table[at + 2] > 125 ? "#14141a" : "#ffffff";
}

/** The position of a value on a score's scale: 1 is the end that means more similar. */
function position(value, {scale, higherIsSimilar}) {
  const bend = scale.is_log ? Math.log : (x) => x;
  const clipped = Math.min(Math.max(value, scale.low), scale.high);
  const place = (bend(clipped) - bend(scale.low)) / (bend(scale.high) - bend(scale.low));
  return higherIsSimilar === false ? 1 - place : place;
}

/** The value at a position: the inverse of `position` between the ends of a scale. */
function valueAt(place, {scale, higherIsSimilar}) {
  const share = higherIsSimilar === false ? 1 - place : place;
  if (!scale.is_log) return scale.low + share * (scale.high - scale.low);
  return Math.exp(Math.log(scale.low) + share * (Math.log(scale.high) - Math.log(scale.low)));
}

/** Colours of lines and groups (Okabe and Ito), in the order in which they are used. */
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00", "#7f7f7f"];
