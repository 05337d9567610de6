/* Distances between layers, and a map of them: classical multidimensional scaling. */

/** The distance for a score: the angle whose cosine is the similarity, or the score itself if it is a distance. */
function distanceOf(value, higherIsSimilar) {
  return higherIsSimilar ? Math.acos(Math.min(Math.max(value, -1), 1)) : Math.max(value, 0);
}

/** Replace each unknown distance (NaN) by the shortest path through a third point, else by the largest known distance. */
function completed(distances, size) {
  const full = Float64Array.from(distances);
  let largest = 0, missing = 0, unlinked = 0;
  for (const value of distances) {
    if (Number.isNaN(value)) missing += 1;
    else if (Number.isFinite(value)) largest = Math.max(largest, value);
  }
  if (!missing) return {full, missing, unlinked};
  for (let a = 0; a < size; a++) {
    full[a * size + a] = 0;
    for (let b = 0; b < a; b++) {
      if (!Number.isNaN(distances[a * size + b])) continue;
      let least = Infinity;
      for (let c = 0; c < size; c++) {
        const way = distances[a * size + c] + distances[b * size + c];
        if (way < least && c !== a && c !== b) least = way;
      }
      if (!Number.isFinite(least)) unlinked += 2;
      full[a * size + b] = full[b * size + a] = Number.isFinite(least) ? least : largest;
    }
  }
  return {full, missing, unlinked};
}

/**
 * Classical multidimensional scaling (Torgerson 1952): coordinates (size, 2) by the two largest eigenvalues of the
 * doubly centred squared distances, and the share of all positive spread that they keep.
 */
function classicalScaling(distances, size) {
  const product = new Float64Array(size * size), means = new Float64Array(size);
  let total = 0;
  for (let a = 0; a < size; a++) {
    let sum = 0;
    for (let b = 0; b < size; b++) sum += distances[a * size + b] ** 2;
    means[a] = sum / size;
    total += means[a] / size;
  }
  for (let a = 0; a < size; a++) {
    for (let b = 0; b < size; b++) product[a * size + b] = -0.5 * (distances[a * size + b] ** 2 - means[a] - means[b] + total);
  }
  const {vectors, values} = leadingEigenvectors(product, size, Math.min(2, size));
  const points = new Float64Array(2 * size);
  let kept = 0, spread = 0;
  for (let a = 0; a < size; a++) spread += Math.max(0, product[a * size + a]);
  values.forEach((value, axis) => {
    kept += Math.max(0, value);
    for (let a = 0; a < size; a++) points[2 * a + axis] = vectors[axis][a] * Math.sqrt(Math.max(0, value));
  });
  return {points, kept: spread > 0 ? Math.min(1, kept / spread) : 1};
}
