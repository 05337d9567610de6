/* A dendrogram of networks: agglomerative clustering with average linkage (UPGMA). */

/**
 * Merges of the nearest clusters, nearest first: {left, right, height, size, isKnown}. Clusters 0 ... size - 1 are the
 * points, cluster size + n is the result of merge n. Unknown distances (NaN) are ignored; clusters with no known distance
 * are merged last.
 */
function averageLinkage(distances, size) {
  const between = Float64Array.from(distances), sizes = new Map(), merges = [];
  const at = (a, b) => between[a * size + b];
  const slots = Array.from({length: size}, (_, a) => a), names = slots.slice();
  for (const a of slots) sizes.set(a, 1);
  let alive = slots.slice();
  while (alive.length > 1) {
    let [a, b, least] = [alive[0], alive[1], Infinity];
    for (let m = 0; m < alive.length; m++) for (let n = m + 1; n < alive.length; n++) {
      const apart = between[alive[m] * size + alive[n]];
      if (apart < least) [a, b, least] = [alive[m], alive[n], apart];
    }
    const left = sizes.get(a), right = sizes.get(b);
    for (const c of alive) {
      if (c === a || c === b) continue;
      const [x, y] = [at(a, c), at(b, c)];
      const mean = Number.isNaN(x) ? y : Number.isNaN(y) ? x : (left * x + right * y) / (left + right);
      between[a * size + c] = between[c * size + a] = mean;
    }
    const known = merges.length ? merges[merges.length - 1].height : 0;
    merges.push({left: names[a], right: names[b], height: Number.isFinite(least) ? least : known, size: left + right, isKnown: Number.isFinite(least)});
    names[a] = size + merges.length - 1;
    sizes.set(a, left + right);
    alive = alive.filter((c) => c !== b);
  }
  return merges;
}

/** An order of the points in which no two branches of the dendrogram cross. */
function leafOrder(merges, size) {
  const leaves = (cluster) => cluster < size ? [cluster] : [...leaves(merges[cluster - size].left), ...leaves(merges[cluster - size].right)];
  return size === 0 ? [] : leaves(size + merges.length - 1 < size ? 0 : size + merges.length - 1);
}
