/* Tables: the numbers of the heat map, the diagonal, and misleading claims. */

const MOST_SQUARES = 10000; // most squares in a table

/** Show the chosen heat map as a table, if the reader has opened it. */
function drawTable() {
  const p = current(), {sweep, choice: c} = state;
  if (!$("table-box").open || p < 0) return $("pair-table").replaceChildren();
  const block = sweep.block(p), choice = sweep.choices[c], [f, g] = [sweep.networks[block.source], sweep.networks[block.target]];
  const rows = Math.min(block.rows, Math.max(1, Math.floor(MOST_SQUARES / block.columns))), best = sweep.best(c, p);
  const more = rows < block.rows ? ` The first ${rows} of ${block.rows} source layers; all are in the CSV.` : "";
  const body = f.layers.slice(0, rows).map((layer, i) => make("tr", {}, headOf(layer.name, {scope: "row"}), ...g.layers.map((_, j) => {
    const k = block.start + i * block.columns + j, value = choice.values[k];
    return cellOf(Number.isNaN(value) ? WHY[sweep.noteOf(c, k).state] ?? "–" : exact(value) + (best[k - block.start] ? " ●" : ""), {className: "number"});
  })));
  $("pair-table").replaceChildren(
    make("caption", {}, `${choiceName(choice)} (${choice.direction}): ${f.name} (rows, source) into ${g.name} (columns, target). ● best source.${more}`),
    make("thead", {}, make("tr", {}, headOf("source \\ target"), ...g.layers.map(({name}) => headOf(name)))), make("tbody", {}, ...body));
  return null;
}

$("table-box").addEventListener("toggle", drawTable);

function tabulate() {
  const {sweep} = state, columns = [...new Map(sweep.judgements.map((one) => [one.choice, one.label])).entries()];
  const shown = sweep.networks.map((network, n) => [network, n]).filter(([network]) => !network.isTwin);
  const head = make("tr", {}, ...["Network", "Architecture", "Parameters", "Layers", "Clean accuracy"].map((name, n) => headOf(name, {className: n > 1 ? "number" : ""})),
    ...columns.map(([, label]) => headOf(label, {className: "number"})));
  const found = new Map(sweep.judgements.map((one) => [`${one.choice} ${one.network}`, one]));
  const body = shown.map(([network, n]) => make("tr", {}, headOf(network.name, {scope: "row"}), cellOf(network.architecture),
    ...[network.num_parameters.toLocaleString("en"), network.layers.length, network.accuracy === null ? "–" : network.accuracy.toFixed(3)].map((text) => cellOf(String(text), {className: "number"})),
    ...columns.map(([c]) => cellOf(judged(found.get(`${c} ${network.name}`), n), {className: "number"}))));
  $("diagonal").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("incomplete").hidden = !sweep.judgements.some((one) => one.num_missing);
}

function judged(one, network) {
  if (!one || !one.num_judged) return "–";
  const button = counted(one.choice, network, network, one.num_violations, one.num_judged, one.num_missing, one.violations);
  button.setAttribute("aria-label", `${one.label}, ${one.network}: ${one.num_violations} of ${one.num_judged} layers`);
  return button;
}

/** A button "part of whole" that shows the heat map; a star if some values are unknown. */
function counted(c, source, target, part, whole, unknown, names) {
  return make("button", {
    type: "button", className: part ? "count lost" : "count", title: names.join("\n"),
    onclick: () => {
      goTo(source, target);
      set({choice: c});
      $("pair").scrollIntoView({behavior: "smooth"});
    },
  }, make("b", {}, String(part)), ` of ${whole}${unknown ? " *" : ""}`);
}

function mislead() {
  const {sweep} = state, columns = [...new Map(sweep.claims.map((one) => [one.choice, one.label])).entries()], pairs = new Map();
  for (const one of sweep.claims) {
    const key = `${one.source} ${one.target}`;
    if (!pairs.has(key)) pairs.set(key, new Map());
    pairs.get(key).set(one.choice, one);
  }
  const head = make("tr", {}, headOf("Source"), headOf("Target"), ...columns.map(([, label]) => headOf(`${label}: misleading claims`, {className: "number"})));
  const body = [...pairs.values()].map((claims) => {
    const {source, target} = claims.values().next().value, names = [sweep.networks[source].name, sweep.networks[target].name];
    return make("tr", {}, ...names.map((name) => headOf(name, {scope: "row"})), ...columns.map(([c]) => cellOf(claimed(claims.get(c), names), {className: "number"})));
  });
  $("misled").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("misled-rule").textContent = data.misleadingRule;
  $("misled-section").hidden = !sweep.claims.length;
  $("unchecked").hidden = !sweep.claims.some((one) => one.num_unchecked);
}

function claimed(one, [source, target]) {
  if (!one) return "–";
  const button = counted(one.choice, one.source, one.target, one.num_misleading, one.num_claims, one.num_unchecked, one.pairs);
  button.setAttribute("aria-label", `${one.label}, ${source} into ${target}: ${one.num_misleading} of ${plural(one.num_claims, "claim")} misleading`);
  return button;
}

listen("sweep", tabulate);
listen("sweep", mislead);
