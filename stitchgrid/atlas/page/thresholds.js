/* The controls of the scatter plot: its two scores, and the thresholds with the claims that they count. */

const LIMITS = [
  ["claim", "share of the target's accuracy from which a stitch makes a claim", 0, 1.2, 0.01],
  ["residual", "residual of direct from which it denies the claim", 0, 1.5, 0.01],
  ["ood", "distance of an AUROC from 0.5 above which it denies the claim", 0, 0.5, 0.01],
];

/** The initial axes: direct's residual and the accuracy of a trained stitch, if the sweep has both. */
function firstAxes(sweep) {
  const first = sweep.claimants[0], scores = sweep.scores.length > 1 ? sweep.scores : sweep.choices.map((_, c) => c);
  return {x: first?.direct[0] ?? scores[0] ?? 0, y: first ? first.accuracy ?? first.relativeAccuracy : scores[1] ?? scores[0] ?? 0};
}

function offerAxes() {
  const {sweep} = state;
  for (const side of ["x", "y"]) $(side).replaceChildren(...choiceOptions());
  $("scatter").hidden = sweep.choices.length < 2; // a scatter plot needs two scores
}

function drawScatter() {
  if (state.sweep.choices.length < 2 || state.x === null) return;
  for (const name of ["x", "y", "scope"]) $(name).value = state[name];
  scatterMap ??= new Chart($("scatter-map"), {
    name: "scatter", label: "Scatter of two scores", measure: () => SCATTER_HEIGHT, paint: paintScatter, over: overScatter, at: nearestSpot, press: grab, move: drag,
    csv: () => scatterCsv(), sql: () => everySql(state.x, state.y),
  });
  scatterMap.canvas.onpointerup = drop;
  scatterMap.canvas.onpointercancel = drop;
  scatterMap.repaint();
  count();
}

/** Count the claims in view of every trained matcher, with the present thresholds. */
function count() {
  const {sweep, limits} = state, p = current(), [from, to] = state.scope === "all" ? [0, sweep.size] : p < 0 ? [0, 0] : [sweep.starts[p], sweep.starts[p + 1]];
  const marked = state.marked ? ` ${plural(state.marked.count, "layer pair")} marked by the brush, ringed in the heat map.` : "";
  $("scatter-words").textContent = `Each dot is a layer pair. Draw a box to mark the pairs in it.${sweep.claimants.length ? " Drag a dashed threshold to count claims with another one." : ""}${marked}`;
  $("thresholds").hidden = !sweep.claimants.length;
  if (!sweep.claimants.length) return;
  if (!$("counts")) layThresholds();
  for (const [name] of LIMITS) {
    $(`limit-${name}`).value = limits[name];
    $(`limit-${name}-value`).textContent = short(limits[name]);
  }
  const rows = sweep.claimants.map(({label, seed}, n) => {
    const {claims, misleading, unchecked} = countClaims(from, to, sweep.claimant(n), limits, sweep.isRounded ? 1e-7 : 0);
    return make("tr", {}, headOf(label + (seed === null ? "" : `, seed ${seed}`), {scope: "row"}), cellOf(String(claims), {className: "number"}),
      cellOf(make("b", {className: misleading ? "bad" : ""}, String(misleading)), {className: "number"}), cellOf(String(unchecked), {className: "number"}));
  });
  $("counts").replaceChildren(make("thead", {}, make("tr", {}, headOf("Matcher"), ...["Claims", "Misleading", "Unchecked"].map((text) => headOf(text, {className: "number"})))), make("tbody", {}, ...rows));
}

function layThresholds() {
  const sliders = LIMITS.map(([name, words, min, max, step_]) => {
    const slider = make("input", {type: "range", id: `limit-${name}`, min, max, step: step_, oninput: () => set({limits: {...state.limits, [name]: Number(slider.value)}})});
    return make("label", {className: "slider"}, make("span", {}, make("b", {}, name), ` ${words}`), make("output", {id: `limit-${name}-value`}), slider);
  });
  $("thresholds").replaceChildren(make("h3", {}, "What would mislead"), ...sliders, make("table", {id: "counts"}), textButton("Back to the thresholds of the query", () => set({limits: {...data.misleadingLimits}}), {className: "quiet small"}));
}

function scatterCsv() {
  const {sweep, x, y} = state, rows = [["source_model", "source_layer", "target_model", "target_layer", choiceName(sweep.choices[x]), choiceName(sweep.choices[y]), "marked"]];
  for (let n = 0; n < spots.count; n++) {
    const k = spots.numbers[n], names = sweep.names(sweep.locate(k));
    rows.push([names.source, names.sourceLayer, names.target, names.targetLayer, sweep.choices[x].values[k], sweep.choices[y].values[k], state.marked?.cells[k] ?? 0]);
  }
  return csvText(rows);
}

for (const side of ["x", "y"]) $(side).addEventListener("change", () => set({[side]: Number($(side).value), marked: null}));
$("scope").addEventListener("change", () => set({scope: $("scope").value, marked: null}));
listen("sweep", offerAxes);
listen("sweep x y scope source target limits", (names) => { if (!(state.scope === "all" && names.size && [...names].every((name) => name === "source" || name === "target" || name === "pin" || name === "hover"))) drawScatter(); });
listen("hover pin marked", (names) => {
  scatterMap?.refresh();
  if (names.has("marked") && scatterMap) count();
});
