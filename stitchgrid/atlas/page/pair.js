/* One pair of networks: a large heat map of the chosen score, small ones of all scores, one crosshair in all. */

const SMALL_SIDE = 170, LETTER = 11, LONGEST_LABEL = 150;
let largeMap = null, smallMaps = [];

function layoutOf(block, width, pen) {
  const {sweep} = state, [f, g] = [sweep.networks[block.source], sweep.networks[block.target]];
  const widest = (layers) => Math.min(LONGEST_LABEL, Math.max(...layers.map(({name}) => widthOf(pen, tail(name, 24))))) + 8;
  const left = Math.min(widest(f.layers) + 20, width * 0.36), top = widest(g.layers) + 24;
  const side = Math.min(LARGEST, (width - left - 2) / block.columns);
  return {left, top, side};
}

const ruler = () => (ruler.pen ??= document.createElement("canvas").getContext("2d"));

function paintLarge(pen, {width}) {
  const p = current(), {sweep, choice: c, minus} = state, theirs = inks();
  if (p < 0) return write(pen, "These two networks were not compared.", 0, 20, {size: 14});
  const block = sweep.block(p), layout = layoutOf(block, width, ruler()), {left, top, side} = layout;
  paintSquares(pen, block, c, {...layout, minus});
  const [f, g] = [sweep.networks[block.source], sweep.networks[block.target]], every = Math.ceil(LETTER / side);
  g.layers.forEach(({name}, j) => {
    if (j % every === 0) write(pen, tail(name, 24), left + (j + 0.5) * side, top - 5, {size: Math.min(11, side + 2), turn: -Math.PI / 2, ink: theirs.soft});
  });
  f.layers.forEach(({name}, i) => {
    if (i % every === 0) write(pen, tail(name, Math.max(4, Math.floor((left - 26) / 5.6))), left - 6, top + (i + 0.5) * side, {align: "right", size: Math.min(11, side + 2)});
  });
  write(pen, `${tail(g.name, 40)} →`, left, 8, {weight: 600, ink: theirs.ink, size: 12});
  write(pen, `${tail(f.name, 40)} →`, 8, top + block.rows * side, {weight: 600, ink: theirs.ink, size: 12, turn: -Math.PI / 2});
}

function overLarge(pen, {width}) {
  const p = current();
  if (p < 0) return;
  const {sweep} = state, block = sweep.block(p), layout = layoutOf(block, width, ruler());
  paintCross(pen, block, layout);
  paintMarked(pen, block, layout);
}

/** Draw rings on the cells that the reader marked in the scatter plot; if squares are too small, tint them. */
function paintMarked(pen, block, {left, top, side}) {
  if (!state.marked) return;
  const {start, rows, columns} = block, cells = state.marked.cells.subarray(start, start + rows * columns), {accent} = inks();
  if (side < MARKED && !(pen instanceof SvgPen)) {
    const picture = Object.assign(document.createElement("canvas"), {width: columns, height: rows}), context = picture.getContext("2d"), pixels = context.createImageData(columns, rows), tint = toBytes(accent);
    cells.forEach((isMarked, at) => { if (isMarked) pixels.data.set([tint[0], tint[1], tint[2], 170], 4 * at); });
    context.putImageData(pixels, 0, 0);
    pen.drawImage(picture, left, top, columns * side, rows * side);
    return;
  }
  const radius = Math.max(1.5, side * 0.3);
  Object.assign(pen, {strokeStyle: accent, lineWidth: 1.5});
  pen.beginPath();
  cells.forEach((isMarked, at) => {
    if (!isMarked) return;
    const x = left + (at % columns + 0.5) * side, y = top + (Math.floor(at / columns) + 0.5) * side;
    pen.moveTo(x + radius, y);
    pen.arc(x, y, radius, 0, 2 * Math.PI);
  });
  pen.stroke();
}

function squareAt(layout, x, y, block) {
  const i = Math.floor((y - layout.top) / layout.side), j = Math.floor((x - layout.left) / layout.side);
  return i < 0 || j < 0 || i >= block.rows || j >= block.columns ? null : block.start + i * block.columns + j;
}

function layPair() {
  const {sweep} = state, host = $("large");
  if (!largeMap) {
    largeMap = new Chart(host, {
      name: "pair", label: "Heat map of the chosen score; arrow keys move through the layer pairs, Enter pins",
      measure: (width) => { const p = current(); if (p < 0) return 40; const block = sweep_(p), {top, side} = layoutOf(block, width, ruler()); return top + block.rows * side + 2; },
      paint: paintLarge, over: overLarge, key: steer,
      at: (x, y) => { const p = current(); return p < 0 ? null : squareAt(layoutOf(sweep_(p), largeMap.width, ruler()), x, y, sweep_(p)); },
      csv: () => pairCsv(), sql: () => pairSql(),
    });
  }
  const shown = state.every ? sweep.choices.map((_, c) => c) : sweep.scores.length ? sweep.scores : sweep.choices.map((_, c) => c);
  smallMaps.forEach(({chart}) => charts.splice(charts.indexOf(chart), 1));
  $("small").replaceChildren();
  smallMaps = shown.map((c) => smallMap(c));
  $("every-label").hidden = sweep.scores.length === sweep.choices.length;
}

const sweep_ = (p) => state.sweep.block(p);

function smallMap(c) {
  const host = make("figure", {className: "small-map"}), choice = state.sweep.choices[c];
  const title = textButton(choiceName(choice), () => set({choice: c}), {className: "quiet title", title: `${choiceName(choice)}: ${choice.direction}. Show it large.`});
  const room = make("div", {className: "room"});
  host.append(title, room);
  $("small").append(host);
  const layout = (width) => {
    const block = sweep_(current());
    return {left: 0, top: 0, side: Math.min(width / block.columns, SMALL_SIDE * 1.4 / block.rows, 24)};
  };
  const chart = new Chart(room, {
    name: `pair-${c}`, label: `Heat map of ${choiceName(choice)}`,
    measure: (width) => current() < 0 ? 20 : layout(width).side * sweep_(current()).rows,
    paint: (pen, {width}) => { if (current() >= 0) paintSquares(pen, sweep_(current()), c, layout(width)); },
    over: (pen, {width}) => { if (current() >= 0) paintCross(pen, sweep_(current()), layout(width)); },
    at: (x, y) => current() < 0 ? null : squareAt(layout(chart.width), x, y, sweep_(current())),
    key: steer,
  });
  return {c, host, chart};
}

/** Arrow keys move the crosshair, Enter pins it. */
function steer(event) {
  const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key], p = current();
  if (p < 0) return;
  const block = sweep_(p), from = state.hover ?? state.pin;
  if (event.key === "Enter" && from !== null) pin(from);
  if (!move) return;
  event.preventDefault();
  const at = from !== null && state.sweep.locate(from).p === p ? state.sweep.locate(from) : {i: 0 - move[0], j: 0 - move[1]};
  const i = Math.min(Math.max(at.i + move[0], 0), block.rows - 1), j = Math.min(Math.max(at.j + move[1], 0), block.columns - 1);
  const box = largeMap.canvas.getBoundingClientRect(), {left, top, side} = layoutOf(block, largeMap.width, ruler());
  pointer = {x: box.left + left + (j + 1) * side, y: box.top + top + i * side, isTouch: false};
  const k = block.start + i * block.columns + j, names = state.sweep.names({...block, i, j});
  set({hover: k});
  announce(`${names.sourceLayer} into ${names.targetLayer}: ${spokenValue(state.choice, k)}`);
}

function drawPair() {
  $("pair-words").replaceChildren(...pairWords());
  $("small").classList.toggle("alone", state.sweep.scores.length < 2 && !state.every);
  for (const {c, host} of smallMaps) {
    host.classList.toggle("on", c === state.choice);
    host.hidden = current() < 0;
  }
  largeMap.repaint();
  for (const {chart} of smallMaps) chart.repaint();
  drawTable();
}

function pairWords() {
  const {sweep, choice: c, minus} = state, choice = sweep.choices[c];
  if (current() < 0) return ["Choose two networks that were compared."];
  if (minus !== null && minus !== c) return [`${choiceName(choice)} minus ${choiceName(sweep.choices[minus])}, each on its own scale from least (0) to most similar (1). Orange: the first score rates the layers as more similar; purple: the second.`];
  const half = choice.isSymmetric && state.source === state.target ? " The score is symmetric, so one triangle is enough for a network with itself." : "";
  return [`Each square compares a layer of ${sweep.networks[state.source].name} (rows, the source) with a layer of ${sweep.networks[state.target].name} (columns, the target). Layers run from input to output.${half}`];
}

function refreshPair() {
  largeMap?.refresh();
  for (const {chart} of smallMaps) chart.refresh();
}

listen("sweep every", layPair);
listen("sweep every choice source target minus limits", drawPair);
listen("hover pin marked", refreshPair);
