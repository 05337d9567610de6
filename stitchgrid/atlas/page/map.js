/* Map: every layer of every network is a point; similar layers are near each other; a line joins each network's layers. */

const MAP_HEIGHT = 520, MOST_POINTS = 1200, FEW_NETWORKS = 8;
let layerMap = null, nearLayer = null;

/** Layers on the map: all, or if they are too many, the last of every `stage` consecutive layers. */
function mappedLayers() {
  const networks = state.sweep.networks.map((network, n) => [network, n]).filter(([{isTwin}]) => !isTwin), total = networks.reduce((sum, [{layers}]) => sum + layers.length, 0);
  const stage = Math.max(1, Math.ceil(total / MOST_POINTS)), points = [];
  for (const [{layers}, network] of networks) layers.forEach((_, layer) => { if ((layers.length - 1 - layer) % stage === 0) points.push({network, layer}); });
  return {points, stage};
}

/** Distances between the mapped layers by one score, averaged over both directions; NaN if neither was computed. */
function layerDistances(c, points) {
  const {sweep} = state, size = points.length, {values, higherIsSimilar} = sweep.choices[c], sums = new Float64Array(size * size), counts = new Uint8Array(size * size);
  const members = sweep.networks.map(() => []);
  points.forEach(({network, layer}, a) => members[network].push([layer, a]));
  for (let p = 0; p < sweep.sources.length; p++) {
    const {start, columns} = sweep.block(p);
    for (const [i, a] of members[sweep.sources[p]]) for (const [j, b] of members[sweep.targets[p]]) {
      const value = values[start + i * columns + j];
      if (a === b || Number.isNaN(value)) continue;
      const found = distanceOf(value, higherIsSimilar);
      for (const at of [a * size + b, b * size + a]) {
        sums[at] += found;
        counts[at] += 1;
      }
    }
  }
  return sums.map((sum, at) => at % (size + 1) === 0 ? 0 : counts[at] ? sum / counts[at] : NaN);
}

/** Positions of the layers by one score; they are computed once. */
function mapOf(c) {
  const {sweep} = state;
  sweep.maps ??= new Map();
  if (!sweep.maps.has(c)) {
    const {points, stage} = mappedLayers(), size = points.length, {full, missing, unlinked} = completed(layerDistances(c, points), size);
    const {points: places, kept} = classicalScaling(full, size);
    sweep.maps.set(c, {points, places, kept, stage, missing, unlinked, size});
  }
  return sweep.maps.get(c);
}

/** Dendrogram of the networks by one score: the mean of the best sources, averaged over both directions. */
function treeOf(c) {
  const {sweep} = state;
  sweep.trees ??= new Map();
  if (!sweep.trees.has(c)) {
    const size = sweep.networks.length, matrix = networkMatrix(c), distances = new Float64Array(size * size).fill(NaN);
    for (let a = 0; a < size; a++) for (let b = 0; b < size; b++) {
      const known = [matrix[a * size + b], matrix[b * size + a]].filter((value) => !Number.isNaN(value)).map((value) => distanceOf(value, sweep.choices[c].higherIsSimilar));
      if (known.length) distances[a * size + b] = known.reduce((sum, value) => sum + value, 0) / known.length;
    }
    const merges = averageLinkage(distances, size);
    sweep.trees.set(c, {merges, leaves: leafOrder(merges, size)});
  }
  return sweep.trees.get(c);
}

function mapLayout(width) {
  const found = mapOf(state.distance), {points, size} = found, margin = 34;
  const ends = [0, 1].map((axis) => Array.from({length: size}, (_, a) => found.places[2 * a + axis]));
  const [lowX, highX, lowY, highY] = [Math.min(...ends[0]), Math.max(...ends[0]), Math.min(...ends[1]), Math.max(...ends[1])];
  const scale = Math.min((width - 2 * margin - 60) / (highX - lowX || 1), (MAP_HEIGHT - 2 * margin) / (highY - lowY || 1));
  const x = (a) => margin + (ends[0][a] - lowX) * scale + (width - 60 - 2 * margin - (highX - lowX) * scale) / 2, y = (a) => MAP_HEIGHT / 2 + ((lowY + highY) / 2 - ends[1][a]) * scale;
  return {points, size, x, y};
}

const networkInk = (n) => {
  const shown = state.sweep.networks.filter(({isTwin}) => !isTwin);
  return shown.length <= FEW_NETWORKS ? LINES[shown.indexOf(state.sweep.networks[n]) % LINES.length] : null;
};

function paintMap(pen, {width}) {
  const {sweep} = state, {points, size, x, y} = mapLayout(width), theirs = inks(), ends = new Map();
  const byNetwork = new Map();
  for (let a = 0; a < size; a++) byNetwork.set(points[a].network, [...(byNetwork.get(points[a].network) ?? []), a]);
  for (const [n, members] of byNetwork) {
    const chosen_ = n === state.source || n === state.target, ink = networkInk(n);
    line(pen, members.map((a) => [x(a), y(a)]), {ink: ink ?? (chosen_ ? theirs.ink : theirs.soft), width: chosen_ ? 2 : 1, alpha: ink ? 0.8 : chosen_ ? 0.9 : 0.25});
    ends.set(n, members[members.length - 1]);
  }
  for (let a = 0; a < size; a++) {
    const {network, layer} = points[a], {depth} = sweep.networks[network].layers[layer], ink = networkInk(network);
    disc(pen, x(a), y(a), size > 300 ? 2.2 : 2.5 + 2 * depth, ink ?? colour(depth));
  }
  for (const [n, a] of ends) {
    if (networkInk(n) || n === state.source || n === state.target) write(pen, tail(sweep.networks[n].name, 22), x(a) + 8, y(a), {ink: theirs.ink, weight: 600});
  }
}

function overMap(pen, {width}) {
  const {points, size, x, y} = mapLayout(width), theirs = inks(), find = (network, layer) => points.findIndex((one) => one.network === network && one.layer === layer);
  for (const [k, thick] of [[state.pin, 2.5], [state.hover, 1.5]]) {
    if (k === null) continue;
    const {source, target, i, j} = state.sweep.locate(k), [a, b] = [find(source, i), find(target, j)];
    if (a < 0 || b < 0) continue;
    line(pen, [[x(a), y(a)], [x(b), y(b)]], {ink: theirs.accent, width: thick, dashes: [4, 3]});
    for (const at of [a, b]) {
      Object.assign(pen, {strokeStyle: theirs.ink, lineWidth: thick});
      pen.beginPath();
      pen.arc(x(at), y(at), 7, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
  if (nearLayer === null || nearLayer >= size) return;
  const {network, layer} = points[nearLayer], one = state.sweep.networks[network], text = `${one.name} ${one.layers[layer].name}`, wide = widthOf(pen, text, 12, 600) + 16;
  const left = Math.max(0, Math.min(x(nearLayer) + 10, width - wide)), top = Math.max(0, y(nearLayer) - 34);
  pen.fillStyle = theirs.raised;
  pen.fillRect(left, top, wide, 24);
  Object.assign(pen, {strokeStyle: theirs.rule, lineWidth: 1});
  pen.strokeRect(left, top, wide, 24);
  write(pen, text, left + 8, top + 12, {size: 12, weight: 600, ink: theirs.ink});
}

function layerAt({x: px, y: py}) {
  const {size, x, y} = mapLayout(layerMap.width);
  let least = 14 ** 2, found = null;
  for (let a = 0; a < size; a++) {
    const far = (x(a) - px) ** 2 + (y(a) - py) ** 2;
    if (far < least) [least, found] = [far, a];
  }
  return found;
}

function pointMap(found) {
  if (found !== nearLayer) {
    nearLayer = found;
    requestAnimationFrame(() => layerMap.refresh());
  }
  return true;
}

function drawMap() {
  const {sweep} = state, c = state.distance;
  $("map").hidden = c === null;
  if (c === null) return;
  const {stage, missing, unlinked, kept, size} = mapOf(c), choice = sweep.choices[c];
  const kind = choice.higherIsSimilar ? "the angle whose cosine is the score" : "the score itself";
  $("map-words").textContent = `Classical multidimensional scaling of ${plural(size, "layer")}; the distance is ${kind}${choice.isSymmetric ? "" : ", averaged over both directions, because it is not symmetric"}. `
    + `A line joins the layers of each network; ${networkInk(0) ? "dots grow with depth" : "dots are brighter with depth"}. The two axes keep ${Math.round(kept * 100)} % of the spread. `
    + `${stage > 1 ? `Of every ${stage} consecutive layers, the last one is shown. ` : ""}${missing ? `${Math.round(missing / (size * (size - 1) || 1) * 100)} % of the distances were not computed: each is replaced by the shortest path through a third layer${unlinked ? ", or, if there is none, by the largest distance. So the relative position of networks that were never compared means nothing" : ""}.` : ""} `
    + "The dendrogram joins networks by the mean score of their best sources, in both directions (average linkage).";
  layerMap ??= new Chart($("layer-map"), {
    name: "map", label: "Map of all layers", measure: () => MAP_HEIGHT, paint: paintMap, over: overMap, move: (place) => pointMap(layerAt(place)),
    press: (place) => {
      const found = layerAt(place);
      if (found !== null) pinLayer(mapOf(state.distance).points[found]);
      return true;
    },
    csv: () => csvText([["model", "layer", "x", "y"], ...mapOf(state.distance).points.map(({network, layer}, a) => [sweep_name(network), state.sweep.networks[network].layers[layer].name, mapOf(state.distance).places[2 * a], mapOf(state.distance).places[2 * a + 1]])]),
    sql: () => everySql(state.distance),
  });
  layerMap.canvas.onpointerleave = () => pointMap(null);
  layerMap.repaint();
  drawTree();
}

const sweep_name = (n) => state.sweep.networks[n].name;

/** Scores for a map: symmetric ones; if there are none, all that have a direction. */
function distancesOf(sweep) {
  const ranked = sweep.scores.filter((c) => sweep.choices[c].higherIsSimilar !== null), symmetric = ranked.filter((c) => sweep.choices[c].isSymmetric);
  return symmetric.length ? symmetric : ranked;
}

function offerDistances() {
  const offered = distancesOf(state.sweep);
  $("distance").replaceChildren(...choiceOptions((_, c) => offered.includes(c)));
  nearLayer = null;
}

$("distance").addEventListener("change", () => set({distance: Number($("distance").value)}));
listen("sweep", offerDistances);
listen("sweep distance", () => {
  if (state.distance !== null) $("distance").value = state.distance;
  drawMap();
});
listen("source target", () => { if (layerMap && state.distance !== null) layerMap.repaint(); });
listen("hover pin", () => { if (state.distance !== null) layerMap?.refresh(); });
