/* What the reader looks at. Every view listens to the parts that it shows; the URL's hash keeps what can be sent on. */

const state = {
  sweep: null, choice: 0, source: 0, target: 0, pin: null, hover: null, // pin and hover: number of a layer pair
  minus: null, every: false, marked: null, limits: null, x: null, y: null, scope: "pair",
};
const listeners = [];
let changed = new Set(), frame = 0, isReading = false;

/** Call `update` once in the frame after any of these parts of the state changed. */
function listen(names, update) {
  listeners.push({names: names.split(" "), update});
}

function set(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (Object.is(state[name], value)) continue;
    state[name] = value;
    changed.add(name);
  }
  if (changed.size && !frame) frame = requestAnimationFrame(flush);
}

function flush() {
  cancelAnimationFrame(frame);
  frame = 0;
  const names = changed;
  changed = new Set();
  for (const {names: wanted, update} of listeners) if (wanted.some((name) => names.has(name))) update(names);
  if (!isReading && ["sweep", "choice", "source", "target", "pin"].some((name) => names.has(name))) writeHash();
}

const current = () => state.sweep.pairOf(state.source, state.target);

/** The pair of networks nearest to what is asked for: where they were not compared, another one with the same target, else source. */
function compared(source, target, first = "source") {
  const {sweep} = state;
  if (sweep.pairOf(source, target) >= 0 || !sweep.sources.length) return {source, target};
  const all = Array.from(sweep.sources.keys()), same = {source: (p) => sweep.sources[p] === source, target: (p) => sweep.targets[p] === target};
  const p = all.find(same[first]) ?? all.find(same.target) ?? all.find(same.source) ?? 0;
  return {source: sweep.sources[p], target: sweep.targets[p]};
}

/** Look at a pair of networks; a pin in another pair goes. */
function goTo(source, target) {
  const p = state.sweep.pairOf(source, target);
  const keeps = state.pin !== null && p >= 0 && state.sweep.locate(state.pin).p === p;
  set({source, target, hover: null, pin: keeps ? state.pin : null});
}

function pin(k) {
  const {source, target} = state.sweep.locate(k);
  set({source, target, pin: k});
  const names = state.sweep.names(state.sweep.locate(k));
  announce(`Pinned ${names.source} ${names.sourceLayer} into ${names.target} ${names.targetLayer}: ${spokenValue(state.choice, k)}`);
}

function free() {
  set({pin: null, hover: null});
  announce("Nothing is pinned.");
}

function spokenValue(c, k) {
  const choice = state.sweep.choices[c], value = choice.values[k];
  return Number.isNaN(value) ? `${choiceName(choice)}: no value, ${WHY[state.sweep.noteOf(c, k).state] ?? ""}` : `${choiceName(choice)} ${exact(value)}`;
}

/* The hash: sweep, metric (matcher.metric), pair (SOURCE,TARGET), pin (SOURCE_LAYER,TARGET_LAYER) */

function metricWord(c) {
  const {matcher, metric} = state.sweep.choices[c], peers = state.sweep.choices.map((_, n) => n).filter((n) => state.sweep.choices[n].matcher === matcher && state.sweep.choices[n].metric === metric);
  return {word: `${matcher}.${metric}`, variant: peers.indexOf(c)};
}

function hashText() {
  const {sweep, choice, source, target, pin: k} = state, write = (...words) => words.map(encodeURIComponent).join(",");
  const parts = [`sweep=${write(sweep.name)}`];
  if (sweep.choices.length) {
    const {word, variant} = metricWord(choice);
    parts.push(`metric=${write(word)}`);
    if (variant > 0) parts.push(`variant=${variant}`);
  }
  if (sweep.networks.length) parts.push(`pair=${write(sweep.networks[source].name, sweep.networks[target].name)}`);
  if (k !== null) {
    const {sourceLayer, targetLayer} = sweep.names(sweep.locate(k));
    parts.push(`pin=${write(sourceLayer, targetLayer)}`);
  }
  return `#${parts.join("&")}`;
}

function writeHash() {
  try {
    history.replaceState(null, "", hashText());
  } catch {
    // A page inside another one may have no address of its own.
  }
}

function readHash(text) {
  const found = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [key, ...rest] = part.split("=");
    try {
      found[key] = rest.join("=").split(",").map(decodeURIComponent);
    } catch {
      // Not one of ours.
    }
  }
  return found;
}

/** Apply what a hash says of a sweep's view; what it names that is not there is passed over. */
function applyHash({metric, variant, pair, pin: layers}) {
  const {choices, networks} = state.sweep, changes = {hover: null, pin: null};
  const word = metric?.join(","), peers = choices.map((_, n) => n).filter((n) => `${choices[n].matcher}.${choices[n].metric}` === word);
  if (peers.length) changes.choice = peers[Math.min(Number(variant?.[0]) || 0, peers.length - 1)];
  const ends = (pair ?? []).map((name) => networks.findIndex((network) => network.name === name));
  if (ends.length === 2 && ends.every((end) => end >= 0)) Object.assign(changes, compared(...ends, "target"));
  const source = changes.source ?? state.source, target = changes.target ?? state.target, p = state.sweep.pairOf(source, target);
  if (layers?.length === 2 && p >= 0) {
    const i = networks[source].layers.findIndex(({name}) => name === layers[0]), j = networks[target].layers.findIndex(({name}) => name === layers[1]);
    if (i >= 0 && j >= 0) changes.pin = state.sweep.starts[p] + i * networks[target].layers.length + j;
  }
  set(changes);
}
