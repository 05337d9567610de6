/* The state of the page. Every view listens to the parts that it shows; the URL's hash keeps the parts worth sharing. */

const state = {
  sweep: null, choice: 0, source: 0, target: 0, pin: null, hover: null, // pin and hover: number of a layer pair
  minus: null, every: false, marked: null, limits: null, x: null, y: null, scope: "pair", order: "given", distance: null,
};
const SENT = ["sweep", "choice", "source", "target", "pin", "minus", "every", "x", "y", "scope", "order", "distance"]; // in the hash, and limits
const listeners = [];
let changed = new Set(), frame = 0, hashTimer = 0, isReading = false;

/** Call `update` once in the next frame after any of these parts of the state has changed. */
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
  if (isReading) return;
  if (SENT.some((name) => names.has(name))) writeHash();
  else if (names.has("limits")) { // limits are dragged, and browsers refuse too many changes of the address
    clearTimeout(hashTimer);
    hashTimer = setTimeout(writeHash, 300);
  }
}

const current = () => state.sweep.pairOf(state.source, state.target);

/** The given pair of networks if it was compared; else a compared pair that shares the `first` side, or a side, with it. */
function compared(source, target, first = "source") {
  const {sweep} = state;
  if (sweep.pairOf(source, target) >= 0 || !sweep.sources.length) return {source, target};
  const all = Array.from(sweep.sources.keys()), same = {source: (p) => sweep.sources[p] === source, target: (p) => sweep.targets[p] === target};
  const p = all.find(same[first]) ?? all.find(same.target) ?? all.find(same.source) ?? 0;
  return {source: sweep.sources[p], target: sweep.targets[p]};
}

/** Show a pair of networks, and remove a pin in another pair. */
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

/* The hash: sweep, metric (matcher.metric), pair (SOURCE,TARGET), pin (SOURCE_LAYER,TARGET_LAYER); and what differs from
   the initial state: minus, x, y, distance (each matcher.metric,number among those of this name), every, scope, order, limits */

function metricWord(c) {
  const {matcher, metric} = state.sweep.choices[c], peers = state.sweep.choices.map((_, n) => n).filter((n) => state.sweep.choices[n].matcher === matcher && state.sweep.choices[n].metric === metric);
  return {word: `${matcher}.${metric}`, variant: peers.indexOf(c)};
}

const PICKED = ["minus", "x", "y", "distance"], LIMIT_NAMES = ["claim", "residual", "ood"];

/** The parts of the hash for everything that a reader has changed, except metric, pair and pin. */
function furtherParts(write) {
  const first = beginning(state.sweep), parts = [];
  for (const name of PICKED) {
    if (state[name] === first[name] || state[name] === null) continue;
    const {word, variant} = metricWord(state[name]);
    parts.push(`${name}=${write(word, variant)}`);
  }
  for (const name of ["every", "scope", "order"]) if (state[name] !== first[name]) parts.push(`${name}=${write(state[name])}`);
  for (const name of LIMIT_NAMES) if (state.limits[name] !== first.limits[name]) parts.push(`${name}=${state.limits[name]}`);
  return parts;
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
  if (sweep.choices.length) parts.push(...furtherParts(write));
  return `#${parts.join("&")}`;
}

function writeHash() {
  try {
    history.replaceState(null, "", hashText());
  } catch {
    // A page in an iframe may have no address of its own.
  }
}

function readHash(text) {
  const found = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [key, ...rest] = part.split("=");
    try {
      found[key] = rest.join("=").split(",").map(decodeURIComponent);
    } catch {
      // A part that this page did not write.
    }
  }
  return found;
}

/** The choice with a name, matcher.metric, and a number among the choices of that name; null if there is none. */
function choiceOf(words, variant) {
  const {choices} = state.sweep, word = words?.join(","), peers = choices.map((_, n) => n).filter((n) => `${choices[n].matcher}.${choices[n].metric}` === word);
  return peers.length ? peers[Math.min(Number(variant) || 0, peers.length - 1)] : null;
}

/** Apply a hash to the state; unknown names are ignored. */
function applyHash({metric, variant, pair, pin: layers, ...further}) {
  const {networks} = state.sweep, changes = {hover: null, pin: null}, choice = choiceOf(metric, variant?.[0]);
  if (choice !== null) changes.choice = choice;
  for (const name of PICKED) {
    const found = choiceOf(further[name]?.slice(0, 1), further[name]?.[1]);
    if (found !== null) changes[name] = found;
  }
  if (further.every?.[0] === "true") changes.every = true;
  for (const name of ["scope", "order"]) if (further[name] && [...$(name).options].some(({value}) => value === further[name][0])) changes[name] = further[name][0];
  const limits = LIMIT_NAMES.map((name) => [name, further[name]?.length === 1 && further[name][0] !== "" ? Number(further[name][0]) : NaN]).filter(([, value]) => value >= 0);
  if (limits.length) changes.limits = {...state.limits, ...Object.fromEntries(limits)};
  const ends = (pair ?? []).map((name) => networks.findIndex((network) => network.name === name));
  if (ends.length === 2 && ends.every((end) => end >= 0)) Object.assign(changes, compared(...ends, "target"));
  const source = changes.source ?? state.source, target = changes.target ?? state.target, p = state.sweep.pairOf(source, target);
  if (layers?.length === 2 && p >= 0) {
    const i = networks[source].layers.findIndex(({name}) => name === layers[0]), j = networks[target].layers.findIndex(({name}) => name === layers[1]);
    if (i >= 0 && j >= 0) changes.pin = state.sweep.starts[p] + i * networks[target].layers.length + j;
  }
  set(changes);
}
