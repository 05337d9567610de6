// The arithmetic of the atlas page, against answers that Python found. Run by tests/atlas/test_atlas_arithmetic.py.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {test} from "node:test";

const {
  averageLinkage, bestSources, brief, claimOf, classicalScaling, colour, completed, contrast, countClaims, distanceOf, exact,
  fromBase64, gunzip, interval, leadingEigenvectors, leafOrder, meanBest, position, readArrays, short, ticks, valueAt,
} = await import(process.env.ATLAS_ARITHMETIC);
const answers = JSON.parse(readFileSync(process.env.ATLAS_ANSWERS, "utf8"));
const numbers = (values) => Float64Array.from(values, (value) => value === null ? NaN : Number(value));
const near = (found, expected, room = 1e-9) => assert.ok(Math.abs(found - expected) <= room * Math.max(1, Math.abs(expected)), `${found} is not ${expected}`);

test("best sources are those of Python, ties, gaps and diverged cells included", () => {
  assert.ok(answers.best.length > 50);
  for (const {values, rows, columns, higher, diverged, best} of answers.best) {
    const found = bestSources(numbers(values), 0, rows, columns, higher, (k) => diverged[k]);
    assert.deepEqual(Array.from(found, Boolean), best);
  }
});

test("positions on a scale are those of Python, and their inverse leads back", () => {
  for (const {scale, higher, values, places} of answers.scales) {
    const choice = {scale, higherIsSimilar: higher};
    numbers(values).forEach((value, n) => near(position(value, choice), places[n], 1e-9));
    for (const place of [0, 0.3, 1]) near(position(valueAt(place, choice), choice), place, 1e-9);
  }
});

test("arrays come out as they went in", async () => {
  const {arrays, gzip} = answers.packed;
  const found = readArrays(await gunzip(fromBase64(gzip)), arrays);
  assert.deepEqual(found.map((array) => array.constructor.name), ["Float64Array", "Uint8Array", "Float32Array", "Uint16Array"]);
  assert.deepEqual(found.map((array) => Array.from(array, String)), [["0.1", "NaN", "-Infinity"], ["1", "2", "3"], ["0.5"], ["300"]]);
});

test("the largest eigenvalues are those of numpy", () => {
  for (const {matrix, size, values} of answers.eigen) {
    const found = leadingEigenvectors(numbers(matrix), size, 2);
    values.slice(0, 2).forEach((value, n) => near(found.values[n], value, 1e-6));
  }
});

test("scaling gives points in a plane their distances back", () => {
  const {distances, size} = answers.plane;
  const {points, kept} = classicalScaling(numbers(distances), size);
  near(kept, 1, 1e-6);
  for (let a = 0; a < size; a++) for (let b = 0; b < size; b++) {
    near(Math.hypot(points[2 * a] - points[2 * b], points[2 * a + 1] - points[2 * b + 1]), distances[a * size + b], 1e-6);
  }
});

test("an equal triangle, one point and no point are no trouble", () => {
  const {points} = classicalScaling(Float64Array.from([0, 1, 1, 1, 0, 1, 1, 1, 0]), 3);
  for (const [a, b] of [[0, 1], [1, 2], [0, 2]]) near(Math.hypot(points[2 * a] - points[2 * b], points[2 * a + 1] - points[2 * b + 1]), 1, 1e-9);
  assert.deepEqual(Array.from(classicalScaling(Float64Array.of(0), 1).points, Math.abs), [0, 0]);
  assert.equal(classicalScaling(new Float64Array(0), 0).points.length, 0);
});

test("unknown distances are the shortest way over a third point, else the largest", () => {
  const distances = Float64Array.from([0, 1, NaN, NaN, 1, 0, 2, NaN, NaN, 2, 0, NaN, NaN, NaN, NaN, 0]);
  const {full, missing, unlinked} = completed(distances, 4);
  assert.deepEqual([full[2], full[3], missing, unlinked], [3, 2, 8, 6]);
});

test("a dendrogram is that of scipy, in an order without crossings", () => {
  for (const {distances, size, heights, sizes} of answers.trees) {
    const merges = averageLinkage(numbers(distances), size);
    merges.forEach(({height, size: number}, n) => {
      near(height, heights[n]);
      assert.equal(number, sizes[n]);
    });
    const order = leafOrder(merges, size);
    assert.deepEqual([...order].sort((a, b) => a - b), Array.from({length: size}, (_, n) => n));
    const leaves = (cluster) => cluster < size ? [cluster] : [...leaves(merges[cluster - size].left), ...leaves(merges[cluster - size].right)];
    merges.forEach((_, n) => {
      const places = leaves(size + n).map((leaf) => order.indexOf(leaf));
      assert.equal(Math.max(...places) - Math.min(...places), places.length - 1);
    });
  }
  assert.deepEqual(leafOrder(averageLinkage(Float64Array.of(0), 1), 1), [0]);
  assert.deepEqual(leafOrder([], 0), []);
});

test("claims follow the rule of the query", () => {
  const limits = {claim: 0.8, residual: 0.25, ood: 0.1}, of = (relative, direct, ...detectors) =>
    claimOf(0, {relative: [relative], direct: [direct], detectors: detectors.map((one) => [one])}, limits);
  assert.deepEqual([of(0.79, 0.9), of(NaN, 0.9), of(0.8, 0.25), of(0.8, 0.24), of(0.9, NaN), of(0.9, NaN, NaN)], [0, 0, 3, 1, 2, 2]);
  assert.deepEqual([of(0.9, 0.3, 0.55), of(0.9, 0.3, 0.61), of(0.9, 0.3, 0.3), of(0.9, NaN, 0.9, 0.5)], [1, 3, 3, 1]);
  const many = {relative: [0.9, 0.9, 0.9, 0.1], direct: [0.3, 0.1, NaN, 0.9], detectors: []};
  assert.deepEqual(countClaims(0, 4, many, limits), {claims: 3, misleading: 1, unchecked: 1});
  assert.deepEqual(countClaims(0, 2, many, {...limits, residual: 0.05}), {claims: 2, misleading: 2, unchecked: 0});
});

test("rounded numbers on a threshold count as they would unrounded", () => {
  const rounded = {relative: Float32Array.of(0.7), direct: Float32Array.of(0.3), detectors: [Float32Array.of(0.6)]};
  assert.ok(rounded.relative[0] < 0.7);
  assert.equal(claimOf(0, rounded, {claim: 0.7, residual: 0.3, ood: 0.1}, 1e-7), 1);
});

test("the mean of the best leaves out columns without a value", () => {
  const values = Float64Array.of(0.1, NaN, 0.5, 0.3, NaN, NaN);
  near(meanBest(values, 0, 2, 3, true, () => false), 0.4);
  near(meanBest(values, 0, 2, 3, false, () => false), 0.3);
  assert.ok(Number.isNaN(meanBest(values, 0, 2, 3, true, () => true)));
});

test("numbers in words", () => {
  assert.deepEqual([exact(0.1234567), exact(Infinity), exact(-1e-9), short(0.12345), short(-2e-16), brief(0.123), brief(12345)], ["0.123457", "∞", "-1e-9", "0.123", "0", "0.12", "1e4"]);
  assert.deepEqual([ticks(0, 1, 5), interval(0.1, 0.25), interval(NaN, 1)], [[0, 0.2, 0.4, 0.6, 0.8, 1], "0.1 to 0.25", ""]);
  assert.deepEqual([distanceOf(1, true), distanceOf(-0.1, false)], [0, 0]);
});

test("colours run from dark to bright with ink that can be read", () => {
  assert.deepEqual([colour(0), colour(1), contrast(0), contrast(1)], ["rgb(68, 1, 84)", "rgb(253, 231, 37)", "#ffffff", "#14141a"]);
});
