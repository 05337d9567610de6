/* Overview: one square for each ordered pair of networks, with the mean score of the best sources. */

let overviewMap = null;

/** Matrix (source, target) of the mean score of the best sources; NaN where networks were not compared. */
function networkMatrix(c) {
  const {sweep} = state, size = sweep.networks.length, summary = sweep.summary(c), matrix = new Float64Array(size * size).fill(NaN);
  for (let p = 0; p < summary.length; p++) matrix[sweep.sources[p] * size + sweep.targets[p]] = summary[p];
  return matrix;
}

function networkOrder(c) {
  const {sweep, order} = state, {networks} = sweep, ids = networks.map((_, n) => n), given = (a, b) => a - b;
  if (order === "name") return ids.sort((a, b) => networks[a].name.localeCompare(networks[b].name, "en", {numeric: true}) || given(a, b));
  if (order === "accuracy") return ids.sort((a, b) => (networks[b].accuracy ?? -1) - (networks[a].accuracy ?? -1) || given(a, b));
  if (order === "tree") return treeOf(c).leaves;
  if (order !== "similar") return ids;
  const matrix = networkMatrix(c), sign = sweep.choices[c].higherIsSimilar === false ? -1 : 1;
  const means = ids.map((a) => {
    const known = ids.filter((b) => b !== a).flatMap((b) => [matrix[a * ids.length + b], matrix[b * ids.length + a]]).filter((value) => !Number.isNaN(value));
    return known.length ? sign * known.reduce((sum, value) => sum + value, 0) / known.length : -Infinity;
  });
  return ids.sort((a, b) => means[b] - means[a] || given(a, b));
}

/** The layout for drawing and for pointer events: networks in order, room for their names, the side of a square. */
function overviewLayout(width) {
  const {sweep, choice: c, order} = state, key = [sweep.serial, c, order, width].join("|");
  if (overviewLayout.key !== key) {
    const ids = networkOrder(c), widest = Math.min(170, Math.max(20, ...sweep.networks.map(({name}) => widthOf(ruler(), tail(name, 26))))) + 10;
    const used = (ends) => ids.filter((n) => ends.has(n)), rows = used(new Set(sweep.sources)), columns = used(new Set(sweep.targets));
    const left = Math.max(110, Math.min(widest, width * 0.34)), side = Math.min(40, (Math.min(width, 900) - left) / columns.length);
    Object.assign(overviewLayout, {key, found: {rows, columns, left, top: widest + 4, side, matrix: networkMatrix(c), size: sweep.networks.length}});
  }
  return overviewLayout.found;
}

function paintOverview(pen, {width}) {
  const {sweep, choice: c} = state, choice = sweep.choices[c], {rows, columns, left, top, side, matrix, size} = overviewLayout(width), every = Math.ceil(LETTER / side);
  rows.forEach((f, i) => columns.forEach((g, j) => {
    const value = matrix[f * size + g], place = position(value, choice), x = left + j * side, y = top + i * side, gap = side >= 10 ? 1 : 0;
    if (Number.isNaN(value)) {
      if (sweep.pairOf(f, g) >= 0 && side >= MARKED) paintMissing(pen, "", x, y, side);
      return;
    }
    pen.fillStyle = colour(place);
    pen.fillRect(x, y, side - gap, side - gap);
    if (side >= READABLE) write(pen, brief(value), x + side / 2, y + side / 2, {size: 10.5, align: "center", ink: contrast(place)});
  }));
  const size_ = Math.min(11, Math.max(7, side + 2));
  rows.forEach((n, at) => {
    if (at % every === 0) write(pen, tail(sweep.networks[n].name, Math.max(4, Math.floor((left - 8) / 5.6))), left - 6, top + (at + 0.5) * side, {align: "right", size: size_});
  });
  columns.forEach((n, at) => {
    if (at % every === 0) write(pen, tail(sweep.networks[n].name, 26), left + (at + 0.5) * side, top - 5, {turn: -Math.PI / 2, size: size_});
  });
  write(pen, "source ↓  target →", left - 6, top - 10, {align: "right", size: 10});
}

let pointed = null; // the pair of networks under the pointer

function overOverview(pen, {width}) {
  const {rows, columns, left, top, side, matrix, size} = overviewLayout(width), theirs = inks();
  const frame = (f, g, ink, thick) => {
    const i = rows.indexOf(f), j = columns.indexOf(g);
    if (i < 0 || j < 0) return;
    Object.assign(pen, {strokeStyle: ink, lineWidth: thick});
    pen.strokeRect(left + j * side - 1, top + i * side - 1, side + 1, side + 1);
  };
  frame(state.source, state.target, theirs.ink, 2.5);
  if (!pointed) return;
  frame(pointed.source, pointed.target, theirs.accent, 2);
  const [f, g] = [state.sweep.networks[pointed.source].name, state.sweep.networks[pointed.target].name];
  const value = matrix[pointed.source * size + pointed.target], text = `${f} → ${g}: ${Number.isNaN(value) ? "no value" : exact(value)}`;
  const wide = widthOf(pen, text, 12, 600) + 16, x = Math.max(0, Math.min(left + columns.indexOf(pointed.target) * side, width - wide)), y = top + rows.indexOf(pointed.source) * side - 30;
  pen.fillStyle = theirs.raised;
  pen.fillRect(x, Math.max(0, y), wide, 24);
  Object.assign(pen, {strokeStyle: theirs.rule, lineWidth: 1});
  pen.strokeRect(x, Math.max(0, y), wide, 24);
  write(pen, text, x + 8, Math.max(0, y) + 12, {size: 12, weight: 600, ink: theirs.ink});
}

function pairUnder({x, y}) {
  const {rows, columns, left, top, side} = overviewLayout(overviewMap.width), i = Math.floor((y - top) / side), j = Math.floor((x - left) / side);
  if (i < 0 || j < 0 || i >= rows.length || j >= columns.length) return null;
  const [source, target] = [rows[i], columns[j]];
  return state.sweep.pairOf(source, target) < 0 ? null : {source, target};
}

function pointOverview(found) {
  if (pointed?.source === found?.source && pointed?.target === found?.target) return true;
  pointed = found;
  requestAnimationFrame(() => overviewMap.refresh());
  return true;
}

/** Arrow keys move through the pairs of networks. */
function steerOverview(event) {
  const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!move) return;
  event.preventDefault();
  const {rows, columns} = overviewLayout(overviewMap.width);
  let [i, j] = [rows.indexOf(state.source) + move[0], columns.indexOf(state.target) + move[1]];
  while (rows[i] !== undefined && columns[j] !== undefined && state.sweep.pairOf(rows[i], columns[j]) < 0) [i, j] = [i + move[0], j + move[1]];
  if (rows[i] === undefined || columns[j] === undefined) return;
  goTo(rows[i], columns[j]);
  announce(`${state.sweep.networks[rows[i]].name} into ${state.sweep.networks[columns[j]].name}`);
}

function overviewCsv() {
  const {sweep, choice: c} = state, summary = sweep.summary(c);
  return csvText([["source_model", "target_model", "mean_best"], ...Array.from(summary, (value, p) => [sweep.networks[sweep.sources[p]].name, sweep.networks[sweep.targets[p]].name, value])]);
}

function drawOverview() {
  const {sweep, choice: c} = state;
  $("overview-words").textContent = `Each square is a pair of a source (row) and a target (column): ${choiceName(sweep.choices[c])} of the best source layer, averaged over the target's layers. Choose a square to see the pair.`;
  overviewMap ??= new Chart($("overview-map"), {
    name: "overview", label: "Matrix of networks; arrow keys move through the pairs",
    measure: (width) => { const {top, side, rows} = overviewLayout(width); return top + side * rows.length + 2; },
    paint: paintOverview, over: overOverview, key: steerOverview, move: (place) => pointOverview(pairUnder(place)),
    press: (place) => { const found = pairUnder(place); if (found) goTo(found.source, found.target); return true; },
    csv: overviewCsv, sql: () => overviewSql(),
  });
  overviewMap.canvas.onpointerleave = () => pointOverview(null);
  overviewLayout.key = null;
  overviewMap.repaint();
}

const overviewSql = () => `select source_model, target_model, sum(value) / count(*) as mean_best\nfrom (\n  select source_model, target_model, target_layer, ${state.sweep.choices[state.choice].higherIsSimilar === false ? "min" : "max"}(value) as value\n  from results\n  where ${choiceSql(state.choice).join("\n    and ")}\n    and not isnan(value) and not list_contains(flags, 'diverged')\n  group by all\n)\ngroup by all\norder by all\n`;

$("order").addEventListener("change", () => set({order: $("order").value}));
listen("order", () => { $("order").value = state.order; });
listen("sweep choice order", drawOverview);
listen("source target", () => overviewMap?.refresh());
