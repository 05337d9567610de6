/* Distances between layers, and a map of them: classical multidimensional scaling. */

/** A distance made of a score: the angle whose cosine is a similarity, or a distance as it is; none is below 0. */
function distanceOf(value, higherIsSimilar) {
  return higherIsSimilar ? Math.acos(Math.min(Math.max(value, -1), 1)) : Math.max(value, 0);
}

/** Fill in unknown distances (NaN) by the shortest way over a third point, else by the largest that is known. */
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

/** The eigenvectors of the largest eigenvalues of a symmetric matrix, by subspace iteration from fixed beginnings. */
function leadingEigenvectors(matrix, size, wanted, rounds = 200, precision = 1e-7) {
  // Shifted so that no eigenvalue is negative: iteration would otherwise find the largest in size.
  let shift = 0;
  for (let a = 0; a < size; a++) {
    let sum = 0;
    for (let b = 0; b < size; b++) if (b !== a) sum += Math.abs(matrix[a * size + b]);
    shift = Math.max(shift, sum - matrix[a * size + a]);
  }
  shift = Math.min(shift, lowestShift(matrix, size));
  const number = Math.min(size, wanted + 2), basis = [];
  for (let v = 0; v < number; v++) basis.push(Float64Array.from({length: size}, (_, a) => Math.cos((v + 1) * (a + 0.5) * Math.PI / size) + 1e-3 * ((a * 7 + v * 13) % 11)));
  let values = [];
  for (let round = 0; round < rounds; round++) {
    orthonormalise(basis);
    const images = basis.map((vector) => times(matrix, vector, size));
    const found = basis.map((vector, v) => dot(vector, images[v]));
    const settled = found.slice(0, wanted).every((value, v) => Math.abs(value - values[v]) <= precision * Math.abs(found[0]));
    values = found;
    if (settled && round > 3) break;
    images.forEach((image, v) => image.forEach((value, a) => { basis[v][a] = value + shift * basis[v][a]; }));
  }
  orthonormalise(basis);
  const order = basis.map((_, v) => v).sort((a, b) => values[b] - values[a]).slice(0, wanted);
  return {vectors: order.map((v) => basis[v]), values: order.map((v) => values[v])};
}

/** How far below 0 eigenvalues may reach: the size of the largest one, found by a few rounds of the power method. */
function lowestShift(matrix, size) {
  let vector = Float64Array.from({length: size}, (_, a) => 1 + (a * 31 % 17) / 17), norm = 1;
  for (let round = 0; round < 12; round++) {
    norm = Math.sqrt(dot(vector, vector)) || 1;
    vector = times(matrix, vector.map((value) => value / norm), size);
  }
  return Math.sqrt(dot(vector, vector));
}

function times(matrix, vector, size) {
  const image = new Float64Array(size);
  for (let a = 0; a < size; a++) {
    let sum = 0;
    for (let b = 0, at = a * size; b < size; b++, at++) sum += matrix[at] * vector[b];
    image[a] = sum;
  }
  return image;
}

function dot(first, second) {
  let sum = 0;
  for (let a = 0; a < first.length; a++) sum += first[a] * second[a];
  return sum;
}

/** Make vectors orthogonal and of length 1, each in turn (twice, against rounding); zeros stay. */
function orthonormalise(vectors) {
  vectors.forEach((vector, v) => {
    for (let turn = 0; turn < 2; turn++) {
      for (let before = 0; before < v; before++) {
        const share = dot(vector, vectors[before]);
        for (let a = 0; a < vector.length; a++) vector[a] -= share * vectors[before][a];
      }
    }
    const norm = Math.sqrt(dot(vector, vector));
    for (let a = 0; a < vector.length; a++) vector[a] = norm > 1e-150 ? vector[a] / norm : 0;
  });
}
