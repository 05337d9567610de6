/* Answers: for each target layer its best source layer, the evidence, and the checks. */

const SIGNS = {passed: "✓", failed: "✗", "not computed": "·", "does not apply": "–"};
const NO_LAYER = 0xffff;
const wordsOf = (name) => name.replaceAll("_", " ");

/** The choice that shows the score of a choice's matcher and seed. */
function scoreOf(c) {
  const {sweep} = state, same = ["matcher", "params", "samples", "seed"], one = sweep.choices[c];
  return one.isScore ? c : sweep.scores.find((other) => same.every((name) => sweep.choices[other][name] === one[name])) ?? -1;
}

/** Numbers of the answers about a pair of networks, in order of the target's layers. */
function answersAbout(source, target) {
  const {sweep} = state, all = sweep.answers;
  if (!all) return [];
  if (!sweep.answersByPair) {
    sweep.answersByPair = new Map();
    for (let n = 0; n < all.target.length; n++) {
      const key = all.source[n] * sweep.networks.length + all.target[n];
      if (!sweep.answersByPair.has(key)) sweep.answersByPair.set(key, []);
      sweep.answersByPair.get(key).push(n);
    }
  }
  return sweep.answersByPair.get(source * sweep.networks.length + target) ?? [];
}

/** One answer as an object. */
function answer(n) {
  const {sweep} = state, all = sweep.answers, source = all.source[n], target = all.target[n], c = all.choice[n], block = sweep.block(sweep.pairOf(source, target));
  const layers = sweep.networks[source].layers, k = block.start + all.sourceLayer[n] * block.columns + all.targetLayer[n], {evidence} = sweep.choices[c];
  const checks = all.names.map((name, m) => ({
    name, outcome: all.outcomes[all.checks[n * all.names.length + m]], detail: all.texts ? all.texts[all.details[n * all.names.length + m]] : "",
  }));
  return {
    n, c, k, checks, source, target, verdict: all.verdicts[all.verdict[n]], value: sweep.choices[c].values[k],
    targetLayer: sweep.networks[target].layers[all.targetLayer[n]].name, sourceLayer: layers[all.sourceLayer[n]].name, targetIndex: all.targetLayer[n],
    low: evidence.low ? evidence.low[k] : NaN, high: evidence.high ? evidence.high[k] : NaN,
    runnerUp: all.runnerUp[n] === NO_LAYER ? null : layers[all.runnerUp[n]].name,
    margin: all.margin[n], marginLow: all.margin_low[n], marginHigh: all.margin_high[n], p: all.p[n], untrained: all.untrained_value[n],
    candidates: Array.from(all.candidates.subarray(n ? all.candidateEnds[n - 1] : 0, all.candidateEnds[n]), (layer) => layers[layer]?.name ?? "?"),
  };
}

function drawAnswers() {
  const {sweep, source, target, pin: pinned} = state, names = [sweep.networks[source]?.name, sweep.networks[target]?.name], score = sweep.choices.length ? scoreOf(state.choice) : -1;
  const about = answersAbout(source, target), found = about.filter((n) => sweep.answers.choice[n] === score).map(answer);
  const counts = (sweep.answers?.verdicts ?? []).map((word) => [word, found.filter((one) => one.verdict === word).length]).filter(([, number]) => number);
  $("answers-words").replaceChildren(...(found.length ? [
    `By ${choiceName(sweep.choices[score])}, layers of ${names[0]} for the ${found.length} layers of ${names[1]}: `,
    ...counts.flatMap(([word, number], n) => [n ? ", " : "", make("b", {}, String(number)), " ", word]), ". Choose a row for its checks and the other matchers' answers."]
    : [whyNoAnswers(about)]));
  const head = make("tr", {}, ...["Target layer", "Best source", "Verdict", "Score", "95 % interval", "Next best", "Margin", "95 % interval"].map((text) => headOf(text)),
    ...(sweep.answers?.names ?? []).map((name) => headOf(wordsOf(name), {className: "check", title: wordsOf(name)})));
  const open = pinned === null ? -1 : sweep.locate(pinned).j;
  const rows = found.flatMap((one) => [answerRow(one, one.targetIndex === open), ...(one.targetIndex === open ? [detailRow(one, about)] : [])]);
  $("answers-table").replaceChildren(...(found.length ? [make("thead", {}, head), make("tbody", {}, ...rows)] : []));
  $("answers-note").textContent = found.length ? "✓ passed · ✗ failed · · not computed · – does not apply. Supported: trained, above chance, above its untrained twin, above shuffled images, localised, and no other check failed. Intervals hold the maps fixed." : "";
}

function whyNoAnswers(about) {
  const {sweep, source, target} = state;
  if (current() < 0) return "These two networks were not compared.";
  if (sweep.networks[source].isTwin) return "The source is an untrained twin, which only serves for comparison. Choose the network that it belongs to.";
  return about.length ? "The chosen score has no answers for this pair; choose another score." : `There are no answers for ${sweep.networks[target].name} yet.`;
}

const marginText = (value) => Number.isNaN(value) ? "–" : short(value);
const verdictOf = (word) => make("span", {className: `verdict-word ${word.replaceAll(" ", "-")}`}, word);

const LONGEST_LAYER = 22; // letters; the whole name is in its title

const layerCell = (name) => name === null ? cellOf("–") : cellOf(make("bdi", {}, tail(name, LONGEST_LAYER)), {title: name});

function answerRow(one, isOpen) {
  const row = make("tr", {className: isOpen ? "answer on" : "answer", onclick: () => isOpen ? free() : pin(one.k)},
    make("th", {scope: "row"}, textButton(tail(one.targetLayer, LONGEST_LAYER), () => {}, {className: "quiet name", title: `Pin ${one.sourceLayer} into ${one.targetLayer}`})),
    layerCell(one.sourceLayer), cellOf(verdictOf(one.verdict)), cellOf(short(one.value), {className: "number"}), cellOf(interval(one.low, one.high) || "–", {className: "faint"}),
    layerCell(one.runnerUp), cellOf(marginText(one.margin), {className: "number"}), cellOf(interval(one.marginLow, one.marginHigh) || "–", {className: "faint"}),
    ...one.checks.map(({name, outcome, detail}) => make("td", {className: `check ${outcome.split(" ")[0]}`, title: `${wordsOf(name)}: ${outcome}. ${detail}`, label: `${wordsOf(name)}: ${outcome}`}, SIGNS[outcome])));
  row.querySelector("button").setAttribute("aria-expanded", isOpen);
  return row;
}

function detailRow(one, about) {
  const {sweep} = state, others = about.filter((n) => n !== one.n && sweep.answers.targetLayer[n] === one.targetIndex).map(answer);
  const checks = make("ul", {className: "checks"}, ...one.checks.map(({name, outcome, detail}) => make("li", {className: outcome.split(" ")[0]},
    make("span", {className: "sign"}, SIGNS[outcome]), make("b", {}, wordsOf(name)), ` ${detail || outcome}`)));
  const facts = [
    one.candidates.length ? `As good at 95 %: ${one.candidates.join(", ")}.` : "", Number.isNaN(one.p) ? "" : `p with shuffled images ${short(one.p)}.`,
    Number.isNaN(one.untrained) ? "" : `The untrained twin reaches ${short(one.untrained)}.`,
  ].filter(Boolean).join(" ");
  const table = others.length ? make("table", {className: "others"}, make("caption", {}, "Other matchers for this layer"), make("tbody", {}, ...others.map((other) => make("tr", {},
    make("th", {scope: "row"}, textButton(choiceName(sweep.choices[other.c]), (event) => { event.stopPropagation(); set({choice: other.c}); })), layerCell(other.sourceLayer), cellOf(short(other.value), {className: "number"}),
    cellOf(interval(other.low, other.high), {className: "faint"}), cellOf(`margin ${marginText(other.margin)}`, {className: "faint"}), cellOf(verdictOf(other.verdict)))))) : null;
  return make("tr", {className: "detail"}, make("td", {colSpan: 8 + one.checks.length}, make("div", {className: "detail-grid"}, make("div", {}, checks, facts && make("p", {className: "small"}, facts)), table)));
}

function answersCsv() {
  const {sweep, source, target} = state, head = ["target_model", "target_layer", "source_model", "source_layer", "matcher", "value", "low", "high", "runner_up", "margin", "margin_low", "margin_high", "p", "untrained_value", "verdict"];
  return csvText([[...head, ...(sweep.answers?.names ?? [])], ...answersAbout(source, target).map(answer).map((one) => [
    sweep.networks[one.target].name, one.targetLayer, sweep.networks[one.source].name, one.sourceLayer, choiceName(sweep.choices[one.c]), one.value, one.low, one.high, one.runnerUp ?? "",
    one.margin, one.marginLow, one.marginHigh, one.p, one.untrained, one.verdict, ...one.checks.map(({outcome}) => outcome)])]);
}

const answersSql = () => selectSql("target_layer, matcher, source_layer, value, low, high, runner_up, margin, margin_low, margin_high, p, untrained_value, verdict, checks", "answers",
  [`sweep = ${quoted(state.sweep.name)}`, ...networksSql()], "target_index, matcher, params, seed");

listen("sweep choice source target pin", drawAnswers);
