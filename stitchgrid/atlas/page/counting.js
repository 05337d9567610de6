/* Results that are computed from values: best sources, misleading claims, the mean of a pair of networks. */

const TIE = 1e-6; // scores that differ by at most this are equally good

/** Which of the layer pairs (rows are sources) are the best source of their column; of a tie, all are. */
function bestSources(values, start, rows, columns, higherIsSimilar, leftOut) {
  const best = new Uint8Array(rows * columns);
  if (higherIsSimilar === null) return best;
  const sign = higherIsSimilar ? 1 : -1;
  for (let j = 0; j < columns; j++) {
    let most = NaN;
    for (let i = 0; i < rows; i++) {
      const k = i * columns + j, similarity = sign * values[start + k];
      if (!Number.isNaN(similarity) && !leftOut(start + k) && !(similarity <= most)) most = similarity;
    }
    if (Number.isNaN(most)) continue;
    for (let i = 0; i < rows; i++) {
      const k = i * columns + j;
      if (sign * values[start + k] >= most - TIE && !leftOut(start + k)) best[k] = 1;
    }
  }
  return best;
}

/** The mean, over the columns, of the value of the best source; NaN where no column has one. */
function meanBest(values, start, rows, columns, higherIsSimilar, leftOut) {
  const sign = higherIsSimilar === false ? -1 : 1;
  let sum = 0, number = 0;
  for (let j = 0; j < columns; j++) {
    let most = NaN;
    for (let i = 0; i < rows; i++) {
      const k = start + i * columns + j, similarity = sign * values[k];
      if (!Number.isNaN(similarity) && !leftOut(k) && !(similarity <= most)) most = similarity;
    }
    if (!Number.isNaN(most)) {
      sum += sign * most;
      number += 1;
    }
  }
  return number ? sum / number : NaN;
}

const NO_CLAIM = 0, SUPPORTED = 1, UNCHECKED = 2, MISLEADING = 3;

/**
 * Whether a trained stitch makes a claim about layer pair k. It claims similarity if it keeps enough of the target's
 * accuracy. The claim is misleading if all computed evidence denies it, unchecked if there is none. This is the rule of
 * the query `misleading`.
 */
function claimOf(k, {relative, direct, detectors}, limits, slack = 0) {
  const kept = relative[k];
  if (!(kept >= limits.claim - slack)) return NO_CLAIM;
  let known = 0, denied = 0;
  const residual = direct[k];
  if (!Number.isNaN(residual)) {
    known += 1;
    denied += residual >= limits.residual - slack ? 1 : 0;
  }
  for (const detector of detectors) {
    const auroc = detector[k];
    if (Number.isNaN(auroc)) continue;
    known += 1;
    denied += Math.abs(auroc - 0.5) > limits.ood + slack ? 1 : 0;
  }
  return known === 0 ? UNCHECKED : denied === known ? MISLEADING : SUPPORTED;
}

/** Count the claims about the layer pairs from `from` to `to` - 1. */
function countClaims(from, to, claimant, limits, slack = 0) {
  const found = {claims: 0, misleading: 0, unchecked: 0};
  for (let k = from; k < to; k++) {
    const claim = claimOf(k, claimant, limits, slack);
    if (claim === NO_CLAIM) continue;
    found.claims += 1;
    if (claim === MISLEADING) found.misleading += 1;
    else if (claim === UNCHECKED) found.unchecked += 1;
  }
  return found;
}
