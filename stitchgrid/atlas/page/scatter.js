/* Scatter plot: any two scores of the same layer pairs; a brush marks cells, and thresholds change the counted claims. */

const SCATTER_HEIGHT = 430, NEAR = 7, FEW_DOTS = 4000;
let scatterMap = null, spots = null, held = null;

function scatterFrame(width) {
  const left = 64, right = width - 14, top = 14, bottom = SCATTER_HEIGHT - 48;
  const axis = (c, from, to) => {
    const natural = {...state.sweep.choices[c], higherIsSimilar: true};
    return {
      at: (value) => from + position(value, natural) * (to - from), value: (at) => valueAt(Math.min(Math.max((at - from) / (to - from), 0), 1), natural),
      ticks: natural.scale.is_log ? decades(natural.scale) : ticks(natural.scale.low, natural.scale.high, 6),
    };
  };
  return {left, right, top, bottom, x: axis(state.x, left + 6, right - 6), y: axis(state.y, bottom - 6, top + 6)};
}

const decades = ({low, high}) => Array.from({length: Math.floor(Math.log10(high)) - Math.ceil(Math.log10(low)) + 1}, (_, n) => 10 ** (Math.ceil(Math.log10(low)) + n));

/** Layer pairs in view, with their positions; pairs that lack one of the two scores are left out. */
function findSpots(frame) {
  const {sweep, scope} = state, p = current(), [xs, ys] = [sweep.choices[state.x].values, sweep.choices[state.y].values];
  const [from, to] = scope === "all" ? [0, sweep.size] : p < 0 ? [0, 0] : [sweep.starts[p], sweep.starts[p + 1]];
  const found = {numbers: new Uint32Array(to - from), x: new Float32Array(to - from), y: new Float32Array(to - from), count: 0};
  for (let k = from; k < to; k++) {
    if (Number.isNaN(xs[k]) || Number.isNaN(ys[k])) continue;
    found.numbers[found.count] = k;
    found.x[found.count] = frame.x.at(xs[k]);
    found.y[found.count++] = frame.y.at(ys[k]);
  }
  return found;
}

/** Draw spots: discs if they are few, else one pixel per position, darker where there are more spots. */
function paintSpots(pen, wanted, ink, size = 2.6) {
  if (spots.count <= FEW_DOTS) {
    pen.save();
    pen.globalAlpha = 0.75;
    for (let n = 0; n < spots.count; n++) if (wanted(spots.numbers[n])) disc(pen, spots.x[n], spots.y[n], size, ink);
    pen.restore();
    return;
  }
  const width = Math.ceil(scatterMap.width), height = SCATTER_HEIGHT, counts = new Uint32Array(width * height);
  for (let n = 0; n < spots.count; n++) if (wanted(spots.numbers[n])) counts[Math.round(spots.y[n]) * width + Math.round(spots.x[n])] += 1;
  if (pen instanceof SvgPen) {
    pen.fillStyle = ink;
    counts.forEach((count, at) => { if (count) pen.fillRect(at % width, Math.floor(at / width), 1, 1); });
    return;
  }
  const picture = Object.assign(document.createElement("canvas"), {width, height}), context = picture.getContext("2d"), pixels = context.createImageData(width, height), bytes = toBytes(ink);
  for (let at = 0; at < counts.length; at++) {
    if (!counts[at]) continue;
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * at + channel] = bytes[channel];
    pixels.data[4 * at + 3] = Math.min(255, 70 + 60 * Math.log2(1 + counts[at]));
  }
  context.putImageData(pixels, 0, 0);
  pen.drawImage(picture, 0, 0);
}

/** The trained matcher whose claims are marked: that of an axis or of the chosen score, else the first; -1: none. */
function judgedClaimant() {
  const {sweep, x, y, choice} = state;
  return [y, x, choice].map((c) => sweep.claimantOf(c)).find((n) => n >= 0) ?? (sweep.claimants.length ? 0 : -1);
}

function paintScatter(pen, {width}) {
  const {sweep, x, y, limits} = state, frame = scatterFrame(width), theirs = inks(), n = judgedClaimant(), [first, second] = [sweep.choices[x], sweep.choices[y]];
  for (const value of frame.x.ticks) {
    line(pen, [[frame.x.at(value), frame.top], [frame.x.at(value), frame.bottom]], {ink: theirs.rule});
    write(pen, short(value), frame.x.at(value), frame.bottom + 14, {align: "center"});
  }
  for (const value of frame.y.ticks) {
    line(pen, [[frame.left, frame.y.at(value)], [frame.right, frame.y.at(value)]], {ink: theirs.rule});
    write(pen, short(value), frame.left - 7, frame.y.at(value), {align: "right"});
  }
  const aim = ({higherIsSimilar}, less, more) => higherIsSimilar === null ? "" : higherIsSimilar ? `   ${more} more similar` : `   ${less} more similar`;
  write(pen, choiceName(first) + aim(first, "←", "→"), (frame.left + frame.right) / 2, SCATTER_HEIGHT - 12, {align: "center", ink: theirs.ink});
  write(pen, choiceName(second) + aim(second, "←", "→"), 11, (frame.top + frame.bottom) / 2, {align: "center", ink: theirs.ink, turn: -Math.PI / 2});
  spots = findSpots(frame);
  const misleads = n < 0 ? () => false : (k) => sweep.claim(n, k, limits) === MISLEADING;
  paintSpots(pen, n < 0 ? () => true : (k) => !misleads(k), LINES[0]);
  if (n >= 0) paintSpots(pen, misleads, theirs.accent, 3.2);
}

/** Thresholds on the axes: the name of each limit, its position, and a function from a position to its value. */
function limitLines(frame) {
  const {sweep, limits, scope} = state, clean = sweep.networks[state.target].accuracy || NaN;
  return ["x", "y"].flatMap((side) => {
    const {metric, matcher} = sweep.choices[state[side]], axis = frame[side], on = (name, value, read) => ({side, name, at: axis.at(value), read: (at) => read(axis.value(at))});
    if (matcher === "direct" && metric === "residual") return [on("residual", limits.residual, (value) => value)];
    if (metric === "relative_accuracy") return [on("claim", limits.claim, (value) => value)];
    if (metric === "accuracy" && sweep.claimantOf(state[side]) >= 0 && scope === "pair" && clean) return [on("claim", limits.claim * clean, (value) => value / clean)];
    if (/^ood_(mahalanobis|energy)_auroc$/.test(metric)) return [on("ood", 0.5 + limits.ood, (value) => Math.abs(value - 0.5)), on("ood", 0.5 - limits.ood, (value) => Math.abs(value - 0.5))];
    return [];
  });
}

function overScatter(pen, {width}) {
  if (!spots) return;
  const frame = scatterFrame(width), theirs = inks();
  if (state.sweep.claimants.length) for (const {side, at, name} of limitLines(frame)) {
    const [from, to] = side === "x" ? [[at, frame.top], [at, frame.bottom]] : [[frame.left, at], [frame.right, at]];
    line(pen, [from, to], {ink: theirs.accent, width: 1.5, dashes: [6, 4]});
    write(pen, `${name} ${short(state.limits[name])}`, side === "x" ? at + 5 : frame.right - 4, side === "x" ? frame.top + 8 : at - 8, {ink: theirs.accent, align: side === "x" ? "left" : "right"});
  }
  if (state.marked) {
    paintSpots(pen, (k) => state.marked.cells[k] === 1, theirs.ink, 2.2);
    const {x, y, right, bottom} = state.marked.box;
    Object.assign(pen, {strokeStyle: theirs.ink, lineWidth: 1});
    pen.strokeRect(x, y, right - x, bottom - y);
  }
  for (const [k, width_] of [[state.pin, 3], [state.hover, 1.5]]) {
    if (k === null) continue;
    const [x, y] = [state.sweep.choices[state.x].values[k], state.sweep.choices[state.y].values[k]];
    if (Number.isNaN(x) || Number.isNaN(y)) continue;
    Object.assign(pen, {strokeStyle: theirs.ink, lineWidth: width_});
    pen.beginPath();
    pen.arc(frame.x.at(x), frame.y.at(y), 6, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function nearestSpot(x, y) {
  let least = 12 ** 2, found = null;
  for (let n = 0; n < (spots?.count ?? 0); n++) {
    const distance = (spots.x[n] - x) ** 2 + (spots.y[n] - y) ** 2;
    if (distance < least) [least, found] = [distance, spots.numbers[n]];
  }
  return found;
}

/** Start to drag a threshold, or start to brush. */
function grab({x, y}, event) {
  const near = state.sweep.claimants.length ? limitLines(scatterFrame(scatterMap.width)).find(({side, at}) => Math.abs((side === "x" ? x : y) - at) < NEAR) : null;
  held = near ? {limit: near} : {x, y, moved: false};
  scatterMap.canvas.setPointerCapture?.(event.pointerId);
  return Boolean(near);
}

function drag({x, y}) {
  if (!held) {
    const near = state.sweep.claimants.length && limitLines(scatterFrame(scatterMap.width)).find(({side, at}) => Math.abs((side === "x" ? x : y) - at) < NEAR);
    scatterMap.canvas.style.cursor = near ? (near.side === "x" ? "ew-resize" : "ns-resize") : "crosshair";
    return false;
  }
  if (held.limit) {
    const {side, name, read} = held.limit;
    set({limits: {...state.limits, [name]: Number(Math.max(0, read(side === "x" ? x : y)).toPrecision(3))}});
    return true;
  }
  if (!held.moved && Math.hypot(x - held.x, y - held.y) < 5) return true;
  held.moved = true;
  scatterMap.isHeld = true;
  brush({x: Math.min(x, held.x), right: Math.max(x, held.x), y: Math.min(y, held.y), bottom: Math.max(y, held.y)});
  return true;
}

function brush(box) {
  const cells = new Uint8Array(state.sweep.size);
  let count = 0;
  for (let n = 0; n < spots.count; n++) {
    if (spots.x[n] < box.x || spots.x[n] > box.right || spots.y[n] < box.y || spots.y[n] > box.bottom) continue;
    cells[spots.numbers[n]] = 1;
    count += 1;
  }
  set({marked: count ? {cells, count, box} : null});
}

function drop() {
  if (held && !held.limit && !held.moved) set({marked: null});
  if (held?.moved) announce(`${plural(state.marked?.count ?? 0, "layer pair")} marked.`);
  held = null;
}
