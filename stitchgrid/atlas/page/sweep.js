/* One sweep of the page: networks, choices, and the numbering of layer pairs. */

const DIVERGED = "diverged", TWIN = "@untrained";

let numSweeps = 0;

class Sweep {
  static async open(data) {
    const bytes = await gunzip(fromBase64(data.gzip));
    return new Sweep(data, readArrays(bytes, data.arrays));
  }

  constructor(data, arrays) {
    const {networks, notes} = data;
    Object.assign(this, data, {gzip: null, serial: numSweeps++});
    this.sources = arrays[data.sources];
    this.targets = arrays[data.targets];
    this.choices = data.choices.map((choice) => ({
      ...choice, values: arrays[choice.values], notes: arrays[choice.notes],
      evidence: Object.fromEntries(Object.entries(choice.evidence).map(([name, number]) => [name, arrays[number]])),
    }));
    this.answers = data.answers && Object.fromEntries(Object.entries(data.answers).map(([name, value]) => [name, typeof value === "number" ? arrays[value] : value]));
    this.starts = new Uint32Array(this.sources.length + 1);
    this.pairs = new Int32Array(networks.length ** 2).fill(-1);
    for (let p = 0; p < this.sources.length; p++) {
      this.pairs[this.sources[p] * networks.length + this.targets[p]] = p;
      this.starts[p + 1] = this.starts[p] + networks[this.sources[p]].layers.length * networks[this.targets[p]].layers.length;
    }
    this.size = this.starts[this.sources.length];
    this.diverged = Uint8Array.from(notes, (note) => (note.flags ?? "").split(", ").includes(DIVERGED) ? 1 : 0);
    this.hasDiverged = this.diverged.some((one) => one);
    this.scores = this.choices.map((_, c) => c).filter((c) => this.choices[c].isScore);
    this.bests = new Map();
  }

  pairOf(source, target) {
    return this.pairs[source * this.networks.length + target] ?? -1;
  }

  /** The block of a pair of networks: its first layer pair, and its numbers of rows (source layers) and columns. */
  block(p) {
    const source = this.sources[p], target = this.targets[p];
    return {p, source, target, start: this.starts[p], rows: this.networks[source].layers.length, columns: this.networks[target].layers.length};
  }

  /** The networks and layers of layer pair k. */
  locate(k) {
    let low = 0, high = this.sources.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= k) low = middle;
      else high = middle - 1;
    }
    const block = this.block(low), at = k - block.start;
    return {...block, k, i: Math.floor(at / block.columns), j: at % block.columns};
  }

  names({source, target, i, j}) {
    const [f, g] = [this.networks[source], this.networks[target]];
    return {source: f.name, sourceLayer: f.layers[i].name, target: g.name, targetLayer: g.layers[j].name};
  }

  noteOf(c, k) { return this.notes[this.choices[c].notes[k]]; }

  /** A function that says whether a layer pair cannot be a best source under a choice because its training diverged. */
  leftOut(c) {
    const {notes} = this.choices[c], {diverged} = this;
    return this.hasDiverged ? (k) => diverged[notes[k]] === 1 : () => false;
  }

  best(c, p) {
    const key = c * this.sources.length + p;
    if (!this.bests.has(key)) {
      const {start, rows, columns} = this.block(p), {values, higherIsSimilar} = this.choices[c];
      if (this.bests.size > 5000) this.bests.clear();
      this.bests.set(key, bestSources(values, start, rows, columns, higherIsSimilar, this.leftOut(c)));
    }
    return this.bests.get(key);
  }

  /** For each pair of networks, the mean score of the best sources; NaN if there is no value. */
  summary(c) {
    const choice = this.choices[c];
    choice.summary ??= Float64Array.from(this.sources, (_, p) => {
      const {start, rows, columns} = this.block(p);
      return meanBest(choice.values, start, rows, columns, choice.higherIsSimilar, this.leftOut(c));
    });
    return choice.summary;
  }

  /** The values that the rule of misleading claims needs, by layer pair, for one trained matcher and seed. */
  claimant(n) {
    const found = this.claimants[n];
    if (found.judged) return found.judged;
    const values = (c) => c === null ? null : this.choices[c].values, whole = values(found.relativeAccuracy), part = values(found.accuracy);
    const leftOut = this.leftOut(found.choices[0]), relative = new Float64Array(this.size).fill(NaN), direct = new Float64Array(this.size).fill(NaN);
    for (let p = 0; p < this.sources.length; p++) {
      if (this.networks[this.sources[p]].name.endsWith(TWIN)) continue; // twins make no claims
      const clean = this.networks[this.targets[p]].accuracy || NaN;
      for (let k = this.starts[p]; k < this.starts[p + 1]; k++) {
        if (leftOut(k)) continue;
        relative[k] = whole && !Number.isNaN(whole[k]) ? whole[k] : part ? part[k] / clean : NaN;
      }
    }
    for (const c of found.direct) {
      const gone = this.leftOut(c), residuals = values(c);
      for (let k = 0; k < this.size; k++) if (!gone(k) && !(residuals[k] >= direct[k]) && !Number.isNaN(residuals[k])) direct[k] = residuals[k];
    }
    found.judged = {relative, direct, detectors: found.detectors.map(values)};
    return found.judged;
  }

  /** The claim of claimant n (a trained matcher and seed) about layer pair k. */
  claim(n, k, limits) {
    return claimOf(k, this.claimant(n), limits, this.isRounded ? 1e-7 : 0);
  }

  claimantOf(c) { return this.claimants.findIndex((one) => one.choices.includes(c)); }
}

/** A choice in words: matcher, seed, metric. */
function choiceName({label, seed, metric, matcher}) {
  const who = label + (seed === null ? "" : `, seed ${seed}`);
  return metric === matcher ? who : `${who} · ${metric}`;
}
