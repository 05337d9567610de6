/* Dendrogram of networks: which are similar, by the same score as the map. */

let treeMap = null;

function treeLayout(width) {
  const {sweep} = state, key = [sweep.serial, state.distance, width].join("|");
  if (treeLayout.key !== key) Object.assign(treeLayout, {key, found: layTree(width)});
  return treeLayout.found;
}

function layTree(width) {
  const {sweep} = state, found = treeOf(state.distance), kept = found.leaves.filter((n) => !sweep.networks[n].isTwin), gap = Math.max(9, Math.min(22, 480 / kept.length));
  const widest = Math.min(180, Math.max(20, ...kept.map((n) => widthOf(ruler(), tail(sweep.networks[n].name, 28), 11, 650)))) + 14;
  return {...found, kept, gap, left: 10, right: width - widest};
}

function paintTree(pen, {width}) {
  const {sweep} = state, {merges, kept, gap, left, right} = treeLayout(width), size = sweep.networks.length, theirs = inks(), places = new Map();
  kept.forEach((n, at) => places.set(n, {x: right, y: 26 + (at + 0.5) * gap}));
  const known = merges.filter(({isKnown}) => isKnown).map(({height}) => height), [low, high] = [Math.min(0, ...known), Math.max(1e-9, ...known)], x = (height) => right - (height - low) / (high - low) * (right - left);
  merges.forEach((merge, m) => {
    const ends = [places.get(merge.left), places.get(merge.right)];
    if (!ends[0] || !ends[1]) return places.set(size + m, ends[0] ?? ends[1]);
    const at = x(merge.height), look = {ink: merge.isKnown ? theirs.soft : theirs.rule, width: 1.3, dashes: merge.isKnown ? [] : [2, 3]};
    line(pen, [[ends[0].x, ends[0].y], [at, ends[0].y], [at, ends[1].y], [ends[1].x, ends[1].y]], look);
    return places.set(size + m, {x: at, y: (ends[0].y + ends[1].y) / 2});
  });
  for (const n of kept) {
    const chosen_ = n === state.source || n === state.target, ink = networkInk(n) ?? theirs.soft;
    disc(pen, right + 4, places.get(n).y, 2.5, ink);
    write(pen, tail(sweep.networks[n].name, 28), right + 11, places.get(n).y, {ink: theirs.ink, weight: chosen_ ? 650 : 400, size: Math.min(11, gap + 1)});
  }
  write(pen, `${short(high)} ← distance → ${short(low)}`, left, 8, {size: 10.5});
}

function drawTree() {
  $("tree").hidden = state.sweep.networks.filter(({isTwin}) => !isTwin).length < 2;
  if ($("tree").hidden) return;
  treeMap ??= new Chart($("tree"), {
    name: "tree", label: "Dendrogram of networks", measure: (width) => { const {kept, gap} = treeLayout(width); return 40 + kept.length * gap; }, paint: paintTree,
    press: ({y}) => {
      const {kept, gap} = treeLayout(treeMap.width), n = kept[Math.floor((y - 26) / gap)];
      if (n !== undefined && state.sweep.pairOf(state.source, n) >= 0) goTo(state.source, n);
      return true;
    },
  });
  treeMap.repaint();
}

listen("source target", () => { if (treeMap && state.distance !== null && !$("tree").hidden) treeMap.repaint(); });
