/* Start: the controls above the views, and the page as a whole. */

const data = JSON.parse($("data").textContent);
const opened = new Map(); // sweeps by position, with their arrays

function describe() {
  const {sweep} = state, layers = sweep.networks.reduce((sum, network) => sum + network.layers.length, 0);
  const {done = 0, failed = 0, quarantined = 0, pending = 0, running = 0} = sweep.cells;
  const images = [
    sweep.numEval.length ? `${sweep.numEval.map((n) => n.toLocaleString("en")).join(" or ")} evaluation images` : null,
    sweep.numFit.length ? `maps fitted on ${sweep.numFit.map((n) => n.toLocaleString("en")).join(" or ")}` : null,
  ];
  const days = sweep.computed && [...new Set(sweep.computed)].join(" to ");
  const facts = [
    plural(sweep.networks.length, "network"), plural(layers, "layer"),
    `matched by ${[...new Set(sweep.choices.map((one) => one.label))].join(", ")}`, ...images, days ? `computed ${days}` : null,
  ];
  const lost = failed + quarantined, left = pending + running;
  const told = [
    done ? `${plural(done, "cell")} done` : "Nothing is computed yet",
    lost ? `${lost.toLocaleString("en")} failed` : null, left ? `${left.toLocaleString("en")} to come` : null,
  ].filter(Boolean).join(", ");
  $("title").textContent = sweep.name;
  $("lede").replaceChildren(`${facts.filter(Boolean).join(" · ")} · `, make("span", {className: lost || left ? "problem" : ""}, told));
  $("fold").hidden = !sweep.fold;
  if (sweep.fold) $("fold").textContent = `The sweep has ${sweep.fold.num_cells.toLocaleString("en")} cells, more than the ${sweep.fold.most_cells.toLocaleString("en")} that a page shows layer by layer. So every ${sweep.fold.num_layers} consecutive layers are folded into one stage, which shows the numbers of its last layer; best sources are the best of these. The store has all cells: stitchgrid answer looks at every layer.`;
  const remarks = sweep.networks.flatMap((network) => network.remarks.map((text) => make("li", {}, make("b", {}, network.name), `: ${text}`)));
  $("remarks").replaceChildren(...remarks);
  $("remarks").hidden = !remarks.length;
}

/** Options of choices, grouped by matcher and seed. */
function choiceOptions(wanted = () => true) {
  const groups = new Map();
  state.sweep.choices.forEach((one, c) => {
    if (!wanted(one, c)) return;
    const name = one.label + (one.seed === null ? "" : `, seed ${one.seed}`);
    if (!groups.has(name)) groups.set(name, make("optgroup", {label: name}));
    groups.get(name).append(make("option", {value: c}, choiceName(one)));
  });
  return [...groups.values()];
}

function offer() {
  const {sweep} = state, name = (network, n) => make("option", {value: n}, network.name);
  const sources = new Set(sweep.sources), targets = new Set(sweep.targets);
  $("source").replaceChildren(...sweep.networks.map(name).filter((_, n) => sources.has(n)));
  $("target").replaceChildren(...sweep.networks.map(name).filter((_, n) => targets.has(n)));
  $("choice").replaceChildren(...choiceOptions());
  $("minus").replaceChildren(make("option", {value: ""}, "nothing"), ...choiceOptions((one) => one.higherIsSimilar !== null));
}

function showControls() {
  for (const name of ["source", "target", "choice"]) $(name).value = state[name];
  $("minus").value = state.minus ?? "";
  $("every").checked = state.every;
  explain();
}

/** The legend: colours with their values, and which end means more similar. */
function explain() {
  const {choice: c, minus, sweep} = state, choice = sweep.choices[c];
  if (!choice) return;
  const {scale, higherIsSimilar, direction} = choice, isDifference = minus !== null && minus !== c;
  const low = (scale.clips_low ? "≤ " : "") + short(scale.low), high = (scale.clips_high ? "≥ " : "") + short(scale.high);
  const ends = isDifference ? ["second: more similar", "first: more similar"] : higherIsSimilar === false ? [high, low] : [low, high];
  const ramp = make("canvas", {className: "ramp", width: STEPS, height: 1}), pen = ramp.getContext("2d");
  for (let k = 0; k < STEPS; k++) {
    pen.fillStyle = colour(k / (STEPS - 1), isDifference ? DIFFERENCE : SIMILARITY);
    pen.fillRect(k, 0, 1, 1);
  }
  const words = isDifference ? "" : higherIsSimilar === null ? direction : `${direction.split(" ")[0]} = brighter = more similar${scale.is_log ? ", logarithmic" : ""}`;
  $("legend").replaceChildren(make("span", {}, ends[0], ramp, ends[1]), make("span", {className: "direction"}, words));
  $("marks").replaceChildren(
    ...(higherIsSimilar === null ? [] : [make("span", {}, make("i", {className: "dot"}), "best source of a target layer")]),
    ...(sweep.claimantOf(c) < 0 ? [] : [make("span", {}, make("i", {className: "frame"}), "misleading claim")]),
    make("span", {}, make("i", {className: "hatch"}), "no value"), make("span", {}, make("i", {className: "cross"}, "×"), "failed"));
}

/** The initial state: the first score, and the first pair of trained networks, of two different ones if there is such a pair. */
function beginning(sweep) {
  const trained = (p) => !sweep.networks[sweep.sources[p]].isUntrained && !sweep.networks[sweep.targets[p]].isUntrained;
  const all = Array.from(sweep.sources, (_, p) => p), across = (p) => sweep.sources[p] !== sweep.targets[p];
  const p = all.find((one) => trained(one) && across(one)) ?? all.find(trained) ?? all[0] ?? -1;
  return {
    choice: sweep.scores[0] ?? 0, source: p < 0 ? 0 : sweep.sources[p], target: p < 0 ? 0 : sweep.targets[p], pin: null, minus: null,
    every: false, scope: "pair", order: "given", distance: distancesOf(sweep)[0] ?? null, limits: {...data.misleadingLimits}, ...firstAxes(sweep),
  };
}

async function open(number, hash = {}) {
  if (!opened.has(number)) opened.set(number, await Sweep.open(data.sweeps[number]));
  const sweep = opened.get(number);
  document.body.dataset.ready = "false";
  set({...beginning(sweep), sweep, hover: null, marked: null});
  $("sweep").value = number;
  isReading = true;
  applyHash(hash);
  flush();
  isReading = false;
  writeHash();
  document.body.dataset.ready = "true";
}

async function follow() {
  const hash = readHash(location.hash), number = Math.max(0, data.sweeps.findIndex(({name}) => name === hash.sweep?.join(",")));
  await open(number, hash);
}

async function start() {
  $("footer").textContent = `Made by stitchgrid ${data.version}. ${data.live ? "The page loads its data only from this machine." : "The page holds all its data and loads nothing else."}`;
  $("sweep").addEventListener("change", () => open(Number($("sweep").value)));
  for (const name of ["source", "target"]) $(name).addEventListener("change", () => {
    const {source, target} = compared(Number($("source").value), Number($("target").value), name);
    goTo(source, target);
    showControls();
  });
  $("swap").addEventListener("click", () => { if (state.sweep.pairOf(state.target, state.source) >= 0) goTo(state.target, state.source); });
  $("choice").addEventListener("change", () => set({choice: Number($("choice").value)}));
  $("minus").addEventListener("change", () => set({minus: $("minus").value === "" ? null : Number($("minus").value)}));
  $("every").addEventListener("change", () => set({every: $("every").checked}));
  $("close").addEventListener("click", free);
  listen("sweep", () => { describe(); offer(); });
  listen("sweep choice minus source target every", showControls);
  addEventListener("hashchange", follow);
  watchPage();
  await showSweeps();
  if (data.live) followStore();
}

/** List the sweeps, and show the one that the hash names, or the first. */
async function showSweeps() {
  opened.clear();
  if (!data.sweeps.length) {
    $("title").textContent = "No sweeps";
    $("lede").textContent = `The store holds no planned sweep: launch a job${data.live ? "" : ", then write the atlas again"}.`;
    document.body.dataset.ready = "true";
    return;
  }
  for (const id of ["main", "bar"]) $(id).hidden = false;
  $("sweep").replaceChildren(...data.sweeps.map(({name}, number) => make("option", {value: number}, name)));
  $("sweep-label").hidden = data.sweeps.length < 2;
  await follow();
}

/** Draw again when the page gets another width or other colours, or is printed. */
function watchPage() {
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) repaintAll();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaintAll);
  for (const [event, isPaper] of [["beforeprint", true], ["afterprint", false]]) addEventListener(event, () => {
    document.documentElement.classList.toggle("paper", isPaper);
    repaintAll();
  });
}

start().catch((problem) => {
  $("problem").textContent = `This page could not be drawn: ${problem.message}`;
  $("problem").hidden = false;
});
