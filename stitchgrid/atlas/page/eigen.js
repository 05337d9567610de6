/* The largest eigenvalues of a symmetric matrix: Lanczos with full orthogonalisation, then Jacobi on its small matrix. */

const LANCZOS_STEPS = 36, JACOBI_SWEEPS = 30;

/** The `wanted` largest eigenvalues of a symmetric matrix (size, size) and their eigenvectors, largest first. */
function leadingEigenvectors(matrix, size, wanted) {
  const steps = Math.min(size, LANCZOS_STEPS), basis = [], small = new Float64Array(steps * steps);
  let next = seeded(size, 0), reach = 0;
  for (let n = 0; n < steps; n++) {
    reach = orthonormalise(next, basis);
    if (reach <= 1e-12 * Math.sqrt(size) || n === 0) next = fresh(size, n, basis); // the invariant subspace is complete
    else if (n) small[n * steps + n - 1] = small[(n - 1) * steps + n] = reach;
    basis.push(next);
    const image = times(matrix, next, size);
    small[n * steps + n] = dot(image, next);
    next = image;
  }
  const {values, vectors} = jacobi(small, steps), order = values.map((_, v) => v).sort((a, b) => values[b] - values[a]).slice(0, wanted);
  return {
    values: order.map((v) => values[v]),
    vectors: order.map((v) => {
      const vector = new Float64Array(size);
      basis.forEach((one, n) => { for (let a = 0; a < size; a++) vector[a] += vectors[n * steps + v] * one[a]; });
      return vector;
    }),
  };
}

/** Pseudo-random numbers in [-1, 1), the same for the same seed. */
function seeded(size, seed) {
  let word = (seed + 1) * 2654435761 >>> 0;
  return Float64Array.from({length: size}, () => {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
    return word / 2 ** 31 - 1;
  });
}

function fresh(size, seed, basis) {
  const vector = seeded(size, seed);
  orthonormalise(vector, basis);
  return vector;
}

/** Make a vector orthogonal to a basis (twice, against rounding) and of length 1; return its length before scaling. */
function orthonormalise(vector, basis) {
  for (let turn = 0; turn < 2; turn++) {
    for (const other of basis) {
      const share = dot(vector, other);
      for (let a = 0; a < vector.length; a++) vector[a] -= share * other[a];
    }
  }
  const norm = Math.sqrt(dot(vector, vector));
  for (let a = 0; a < vector.length; a++) vector[a] = norm > 1e-150 ? vector[a] / norm : 0;
  return norm;
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

/** All eigenvalues of a small symmetric matrix, and its eigenvectors as columns, by Jacobi's rotations. */
function jacobi(matrix, size) {
  const work = Float64Array.from(matrix), vectors = new Float64Array(size * size);
  for (let a = 0; a < size; a++) vectors[a * size + a] = 1;
  for (let sweep = 0; sweep < JACOBI_SWEEPS; sweep++) {
    let off = 0;
    for (let a = 0; a < size; a++) for (let b = 0; b < a; b++) off += work[a * size + b] ** 2;
    if (off < 1e-26 * dot(work, work)) break;
    for (let a = 0; a < size; a++) for (let b = a + 1; b < size; b++) rotate(work, vectors, size, a, b);
  }
  return {values: Array.from({length: size}, (_, a) => work[a * size + a]), vectors};
}

function rotate(work, vectors, size, a, b) {
  const between = work[a * size + b];
  if (between === 0) return;
  const ratio = (work[b * size + b] - work[a * size + a]) / (2 * between), tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1));
  const cosine = 1 / Math.hypot(tangent, 1), sine = tangent * cosine;
  for (const [array, step_] of [[work, size], [vectors, size]]) for (let n = 0; n < size; n++) {
    const [x, y] = [array[n * step_ + a], array[n * step_ + b]];
    array[n * step_ + a] = cosine * x - sine * y;
    array[n * step_ + b] = sine * x + cosine * y;
  }
  for (let n = 0; n < size; n++) {
    const [x, y] = [work[a * size + n], work[b * size + n]];
    work[a * size + n] = cosine * x - sine * y;
    work[b * size + n] = sine * x + cosine * y;
  }
}
