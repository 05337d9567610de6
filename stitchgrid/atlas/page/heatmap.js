/* Heat maps: one score of one pair of networks, sources down, targets across. */

const LARGEST = 44, READABLE = 34, MARKED = 5, GAPPED = 7; // side of a square in pixels: largest; with numbers; marks; gaps

/** What squares show: position on the scale (NaN: no value), table of colours, and number. */
function shownBy(c, minus) {
  const {sweep} = state, choice = sweep.choices[c];
  if (minus === null || minus === c) return {place: (k) => position(choice.values[k], choice), table: SIMILARITY, value: (k) => choice.values[k]};
  const other = sweep.choices[minus], same = choice.matcher === other.matcher && choice.metric === other.metric;
  return {
    place: (k) => 0.5 + (position(choice.values[k], choice) - position(other.values[k], other)) / 2, table: DIFFERENCE,
    value: (k) => same ? choice.values[k] - other.values[k] : position(choice.values[k], choice) - position(other.values[k], other),
  };
}

/** Whether a square repeats another one, in the upper triangle of a symmetric score of a network with itself. */
const repeats = (choice, {source, target}, i, j) => choice.isSymmetric && source === target && j > i;

/** Draw the squares of a block; each has a side of `side` pixels. */
function paintSquares(pen, block, c, {left, top, side, minus = null, marks = true}) {
  const choice = state.sweep.choices[c], {start, rows, columns} = block, {place, table, value} = shownBy(c, minus), theirs = inks();
  if (pen instanceof SvgPen) {
    eachSquare(block, choice, (i, j, k) => {
      const at = place(k);
      pen.fillStyle = Number.isNaN(at) ? theirs.ground : colour(at, table);
      pen.fillRect(left + j * side, top + i * side, side, side);
    });
  } else {
    const picture = Object.assign(document.createElement("canvas"), {width: columns, height: rows}), context = picture.getContext("2d");
    const pixels = context.createImageData(columns, rows), ground = toBytes(theirs.ground);
    eachSquare(block, choice, (i, j, k) => {
      const at = place(k), pixel = 4 * (k - start), from = 3 * step(at);
      for (let channel = 0; channel < 3; channel++) pixels.data[pixel + channel] = Number.isNaN(at) ? ground[channel] : table[from + channel];
      pixels.data[pixel + 3] = 255;
    });
    context.putImageData(pixels, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, left, top, columns * side, rows * side);
  }
  if (side >= GAPPED) paintGaps(pen, block, choice, {left, top, side});
  if (side >= MARKED) eachSquare(block, choice, (i, j, k) => {
    const at = place(k), x = left + j * side, y = top + i * side;
    if (Number.isNaN(at)) paintMissing(pen, state.sweep.noteOf(c, k).state, x, y, side);
    else if (side >= READABLE) write(pen, brief(value(k)), x + side / 2, y + side * 0.46, {size: 10.5, ink: contrast(at, table), align: "center"});
  });
  if (marks) paintMarks(pen, block, c, {left, top, side, place, table});
}

function eachSquare(block, choice, visit) {
  for (let i = 0, k = block.start; i < block.rows; i++) for (let j = 0; j < block.columns; j++, k++) if (!repeats(choice, block, i, j)) visit(i, j, k);
}

function paintGaps(pen, {rows, columns}, choice, {left, top, side}) {
  pen.strokeStyle = inks().paper;
  pen.lineWidth = 1;
  pen.beginPath();
  for (let i = 0; i <= rows; i++) {
    pen.moveTo(left, top + i * side);
    pen.lineTo(left + columns * side, top + i * side);
  }
  for (let j = 0; j <= columns; j++) {
    pen.moveTo(left + j * side, top);
    pen.lineTo(left + j * side, top + rows * side);
  }
  pen.stroke();
}

/** Draw a square without a value: hatched, with a cross if the cell failed. */
function paintMissing(pen, why, x, y, side) {
  const theirs = inks(), lost = why === "failed" || why === "quarantined";
  for (let d = 3; d < 2 * side - 2; d += 5) line(pen, [[x + Math.max(0.5, d - side), y + Math.min(d, side - 1)], [x + Math.min(d, side - 1), y + Math.max(0.5, d - side)]], {ink: theirs.hatch});
  const a = side * 0.28, b = side * 0.72;
  if (lost) for (const [p, q] of [[a, b], [b, a]]) line(pen, [[x + p, y + a], [x + q, y + b]], {ink: theirs.accent, width: Math.min(1.8, side / 5)});
}

/** Draw a dot on the best source of each target layer, and a frame around misleading claims. */
function paintMarks(pen, block, c, {left, top, side, place, table}) {
  const {sweep, limits} = state, choice = sweep.choices[c], best = sweep.best(c, block.p), n = sweep.claimantOf(c), theirs = inks();
  const width = Math.max(1, Math.min(2, side / 7));
  eachSquare(block, choice, (i, j, k) => {
    const x = left + j * side, y = top + i * side;
    if (best[k - block.start]) disc(pen, x + side / 2, y + side * (side >= READABLE ? 0.8 : 0.5), Math.max(1, Math.min(2.8, side * 0.14)), contrast(place(k), table));
    if (n >= 0 && sweep.claim(n, k, limits) === MISLEADING) {
      Object.assign(pen, {strokeStyle: theirs.accent, lineWidth: width});
      pen.strokeRect(x + width / 2 + (side >= GAPPED ? 0.5 : 0), y + width / 2 + (side >= GAPPED ? 0.5 : 0), Math.max(1, side - width - (side >= GAPPED ? 1 : 0)), Math.max(1, side - width - (side >= GAPPED ? 1 : 0)));
    }
  });
}

/** Draw the crosshair on layer pairs of the block: thick for the pinned one, thin for the one under the pointer. */
function paintCross(pen, block, {left, top, side}) {
  for (const [k, isPin] of [[state.pin, true], [state.hover, false]]) {
    if (k === null || k < block.start || k >= block.start + block.rows * block.columns) continue;
    const at = k - block.start, i = Math.floor(at / block.columns), j = at % block.columns, theirs = inks();
    const x = left + j * side, y = top + i * side, right = left + block.columns * side, bottom = top + block.rows * side;
    line(pen, [[left, y + side / 2], [x, y + side / 2]], {ink: theirs.ink, width: 1, alpha: 0.55});
    line(pen, [[x + side / 2, top], [x + side / 2, y]], {ink: theirs.ink, width: 1, alpha: 0.55});
    line(pen, [[x + side, y + side / 2], [right, y + side / 2]], {ink: theirs.ink, width: 1, alpha: 0.3});
    line(pen, [[x + side / 2, y + side], [x + side / 2, bottom]], {ink: theirs.ink, width: 1, alpha: 0.3});
    Object.assign(pen, {lineWidth: isPin ? 3 : 2, strokeStyle: theirs.ink});
    pen.strokeRect(x - 1, y - 1, side + 1, side + 1);
    Object.assign(pen, {lineWidth: 1, strokeStyle: theirs.paper});
    pen.strokeRect(x + (isPin ? 1 : 0.5), y + (isPin ? 1 : 0.5), Math.max(1, side - (isPin ? 3 : 2)), Math.max(1, side - (isPin ? 3 : 2)));
  }
}

function toBytes(ink) {
  const pen = toBytes.pen ??= Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = ink;
  pen.fillRect(0, 0, 1, 1);
  return pen.getImageData(0, 0, 1, 1).data;
}
