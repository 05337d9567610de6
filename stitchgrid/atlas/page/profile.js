/* Profile: the scores of one target layer over the depth of the source. */

const PROFILE_TOP = 58, PROFILE_BOTTOM = 44, PROFILE_HEIGHT = 350;
let ownProfile = null, allProfile = null;

/** The target layer of the profile: the pinned one, else the one under the pointer, else the last one, or the middle. */
function profiledLayer(block) {
  for (const k of [state.pin, state.hover]) {
    const at = k === null ? null : state.sweep.locate(k);
    if (at && at.p === block.p) return at.j;
  }
  return drawProfile.j !== undefined && drawProfile.j < block.columns ? drawProfile.j : Math.floor((block.columns - 1) / 2);
}

/** Values of a column of a block, with the depths of its source layers. */
function column(block, j, values) {
  const {layers} = state.sweep.networks[block.source];
  return layers.map(({depth}, i) => [depth, values[block.start + i * block.columns + j]]);
}

function frameOf(width, right, low, high) {
  const left = 54;
  return {
    left, right: width - right, top: PROFILE_TOP, bottom: PROFILE_HEIGHT - PROFILE_BOTTOM,
    x: (depth) => left + 8 + depth * (width - right - left - 16), y: (value) => PROFILE_HEIGHT - PROFILE_BOTTOM - (value - low) / (high - low) * (PROFILE_HEIGHT - PROFILE_BOTTOM - PROFILE_TOP),
  };
}

function paintAxes(pen, frame, {values, say, title, under}) {
  const theirs = inks();
  for (const value of values) {
    line(pen, [[frame.left, frame.y(value)], [frame.right, frame.y(value)]], {ink: theirs.rule});
    write(pen, say(value), frame.left - 6, frame.y(value), {align: "right"});
  }
  for (const depth of [0, 0.25, 0.5, 0.75, 1]) write(pen, String(depth), frame.x(depth), frame.bottom + 14, {align: "center"});
  write(pen, title, frame.left - 46, 10, {ink: theirs.ink, weight: 600});
  write(pen, under, (frame.left + frame.right) / 2, frame.bottom + 34, {align: "center"});
}

/** Lines and bands of the chosen score: its values and intervals, its untrained twin, and shuffled images. */
function ownLines(block, j) {
  const {sweep, choice: c} = state, choice = sweep.choices[c], {evidence} = choice, {twin} = sweep.networks[block.source];
  const p = twin === null ? -1 : sweep.pairOf(twin, block.target);
  return {
    own: column(block, j, choice.values), twin: p < 0 ? [] : column(sweep.block(p), j, choice.values),
    band: evidence.low ? [column(block, j, evidence.low), column(block, j, evidence.high)] : null,
    shuffled: evidence.null_low ? [column(block, j, evidence.null_low), column(block, j, evidence.null_high)] : null,
  };
}

function paintOwn(pen, {width}) {
  const p = current();
  if (p < 0) return;
  const {sweep, choice: c} = state, choice = sweep.choices[c], block = sweep.block(p), {own, twin, band, shuffled} = ownLines(block, drawProfile.j);
  const numbers = [own, twin, ...(band ?? []), ...(shuffled ?? [])].flat().map(([, value]) => value).filter(Number.isFinite);
  let [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  if (!numbers.length) [low, high] = [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - room, high + room];
  const turned = choice.higherIsSimilar === false, frame = frameOf(width, 16, turned ? high : low, turned ? low : high), theirs = inks();
  paintAxes(pen, frame, {values: ticks(low, high, 5), say: short, title: `${choiceName(choice)}${choice.higherIsSimilar === null ? "" : "   ↑ more similar"}`, under: `depth in ${tail(sweep.networks[block.source].name, 30)}`});
  if (shuffled) {
    area(pen, frame, shuffled, theirs.soft, 0.28);
    for (const edge of shuffled) curve(pen, frame, edge, {ink: theirs.soft, width: 0.8});
  }
  if (band) area(pen, frame, band, LINES[0], 0.22);
  curve(pen, frame, twin, {ink: theirs.soft, width: 1.5, dashes: [5, 4]});
  curve(pen, frame, own, {ink: LINES[0], width: 2});
  const best = sweep.best(c, p);
  own.forEach(([depth, value], i) => {
    if (!Number.isFinite(value)) return;
    const isBest = best[i * block.columns + drawProfile.j] === 1;
    disc(pen, frame.x(depth), frame.y(value), isBest ? 5 : 3, isBest ? theirs.ink : LINES[0], isBest ? theirs.paper : null);
  });
  let [x, y] = [8, 28];
  for (const [text, ink, isThere] of [["best source ●", theirs.ink, true], ["95 % interval ▬", LINES[0], band], ["untrained twin ╌", theirs.soft, twin.length], ["shuffled images, 5 to 95 % ▬", theirs.soft, shuffled]]) {
    if (!isThere) continue;
    if (x + widthOf(pen, text, 10.5) > width) [x, y] = [8, y + 14];
    write(pen, text, x, y, {ink, size: 10.5});
    x += widthOf(pen, text, 10.5) + 14;
  }
}

function curve(pen, frame, points, look) {
  let part = [];
  for (const [depth, value] of [...points, [0, NaN]]) {
    if (Number.isFinite(value)) part.push([frame.x(depth), frame.y(value)]);
    else {
      if (part.length) line(pen, part, look);
      part = [];
    }
  }
}

function area(pen, frame, [low, high], ink, alpha) {
  const known = low.map((_, i) => i).filter((i) => Number.isFinite(low[i][1]) && Number.isFinite(high[i][1]));
  if (!known.length) return;
  pen.save();
  Object.assign(pen, {fillStyle: ink, globalAlpha: alpha});
  pen.beginPath();
  [...known.map((i) => high[i]), ...known.reverse().map((i) => low[i])].forEach(([depth, value], n) => n ? pen.lineTo(frame.x(depth), frame.y(value)) : pen.moveTo(frame.x(depth), frame.y(value)));
  pen.closePath();
  pen.fill();
  pen.restore();
}

const allFrame = (width) => frameOf(width, width > 480 ? 150 : 96, 0, 1);

/** All scores, each on its own scale, so that their peaks can be compared. */
function paintAll(pen, {width}) {
  const p = current();
  if (p < 0) return;
  const {sweep} = state, block = sweep.block(p), frame = allFrame(width), theirs = inks(), labels = [];
  paintAxes(pen, frame, {values: [0, 0.5, 1], say: (value) => ({0: "least", 0.5: "", 1: "most"})[value], title: "All scores, each on its own scale   ↑ more similar", under: `depth in ${tail(sweep.networks[block.source].name, 30)}`});
  sweep.scores.forEach((c, n) => {
    const choice = sweep.choices[c], points = column(block, drawProfile.j, choice.values).map(([depth, value]) => [depth, Number.isNaN(value) ? NaN : position(value, choice)]);
    const look = {ink: LINES[n % LINES.length], width: c === state.choice ? 3 : 1.6, dashes: [[], [6, 3], [2, 3]][Math.floor(n / LINES.length) % 3]};
    curve(pen, frame, points, look);
    const last = points.filter(([, place]) => Number.isFinite(place)).pop();
    if (last) labels.push({text: choiceName(choice), y: frame.y(last[1]), ink: look.ink, weight: c === state.choice ? 650 : 400});
  });
  labels.sort((a, b) => a.y - b.y).forEach((label, n) => { label.y = Math.max(label.y, n ? labels[n - 1].y + 13 : frame.top); });
  const over = labels.length ? Math.max(0, labels[labels.length - 1].y - frame.bottom - 30) : 0;
  for (const {text, y, ink, weight} of labels) {
    disc(pen, frame.right + 6, y - over, 3, ink);
    write(pen, tail(text, width > 480 ? 24 : 14), frame.right + 13, y - over, {ink: theirs.ink, weight, size: 10.5});
  }
}

function overProfile(frame) {
  return (pen, {width}) => {
    const p = current();
    if (p < 0) return;
    for (const [k, look] of [[state.pin, {width: 1.5}], [state.hover, {width: 1, alpha: 0.5}]]) {
      if (k === null || state.sweep.locate(k).p !== p) continue;
      const {i} = state.sweep.locate(k), layer = state.sweep.networks[state.source].layers[i], {x, top, bottom} = frame(width);
      line(pen, [[x(layer.depth), top], [x(layer.depth), bottom]], look);
      write(pen, tail(layer.name, 26), x(layer.depth) + (layer.depth > 0.7 ? -5 : 5), bottom - 8, {align: layer.depth > 0.7 ? "right" : "left", ink: inks().ink});
    }
  };
}

function drawProfile() {
  const p = current(), {sweep} = state;
  const at = (frame) => (x) => {
    if (current() < 0) return null;
    const block = state.sweep.block(current()), {layers} = state.sweep.networks[block.source], where = frame();
    const distances = layers.map(({depth}) => Math.abs(where.x(depth) - x)), i = distances.indexOf(Math.min(...distances));
    return block.start + i * block.columns + drawProfile.j;
  };
  const measure = () => PROFILE_HEIGHT, ownFrame = (width) => frameOf(width, 16, 0, 1);
  ownProfile ??= new Chart($("profile-one"), {name: "profile", label: "Chosen score over the depth of the source", measure, paint: paintOwn, over: overProfile(ownFrame), at: at(() => ownFrame(ownProfile.width)), key: steer, csv: () => profileCsv(), sql: () => profileSql()});
  allProfile ??= new Chart($("profile-all"), {name: "profile-all", label: "All scores over the depth of the source", measure, paint: paintAll, over: overProfile(allFrame), at: at(() => allFrame(allProfile.width)), key: steer});
  if (p >= 0) {
    drawProfile.j = profiledLayer(sweep.block(p));
    const g = sweep.networks[state.target];
    $("profile-words").replaceChildren("How similar is ", make("b", {}, `${g.name} ${g.layers[drawProfile.j]?.name ?? ""}`), ` to each layer of ${sweep.networks[state.source].name}? `, state.pin === null ? "Pin a layer pair to keep a target layer here." : "");
  } else $("profile-words").textContent = "These two networks were not compared.";
  ownProfile.repaint();
  allProfile.repaint();
}

function profileCsv() {
  const {sweep} = state, block = sweep.block(current()), names = sweep.names({...block, i: 0, j: drawProfile.j});
  return csvText([["source_layer", "source_depth", "target_layer", "matcher", "value", "low", "high"], ...sweep.scores.flatMap((c) => sweep.networks[block.source].layers.map(({name, depth}, i) => {
    const k = block.start + i * block.columns + drawProfile.j, {values, evidence} = sweep.choices[c];
    return [name, depth, names.targetLayer, choiceName(sweep.choices[c]), values[k], evidence.low ? evidence.low[k] : NaN, evidence.high ? evidence.high[k] : NaN];
  }))]);
}

const profileSql = () => selectSql("source_layer, source_depth, matcher, metric, seed, value, low, high", "results",
  [`sweep = ${quoted(state.sweep.name)}`, ...networksSql(), `target_layer = ${quoted(state.sweep.networks[state.target].layers[drawProfile.j].name)}`], "matcher, metric, seed, source_index");

/** Draw the profile again if the pointer is on another target layer; else move only the line. */
function followProfile() {
  const p = current();
  if (p >= 0 && ownProfile && profiledLayer(state.sweep.block(p)) !== drawProfile.j) drawProfile();
  else for (const chart of [ownProfile, allProfile]) chart?.refresh();
}

listen("sweep choice source target pin", drawProfile);
listen("hover", followProfile);
