/* The tip: everything about one layer pair. It follows the pointer; the pinned layer pair has a sheet. */

const WHY = {
  absent: "not part of the sweep", undefined: "undefined here", failed: "failed", quarantined: "quarantined",
  running: "running", pending: "not computed yet",
};
const MOST_SCORES = 24; // most scores that a tip lists
let pointer = null;

function layerText(network, {name, depth, kind, shape}) {
  return [make("b", {}, make("bdi", {}, network.name)), " ", make("bdi", {}, name), make("span", {className: "faint"}, ` depth ${depth.toFixed(2)}, ${kind} ${shape.join("×")}`)];
}

/** Elements with everything about layer pair k. */
function tell(k, {most = MOST_SCORES} = {}) {
  const {sweep, choice: c} = state, at = sweep.locate(k), choice = sweep.choices[c], value = choice.values[k], note = sweep.noteOf(c, k);
  const [f, g] = [sweep.networks[at.source], sweep.networks[at.target]];
  const range = evidenceText(choice, k), isBest = sweep.best(c, at.p)[k - at.start] === 1;
  const parts = [
    make("div", {className: "ends"}, ...layerText(f, f.layers[at.i]), make("br"), "→ ", ...layerText(g, g.layers[at.j])),
    make("div", {className: "value"}, Number.isNaN(value) ? "no value" : exact(value), make("small", {}, ` ${choiceName(choice)}`)),
    make("div", {className: "faint"}, Number.isNaN(value) ? WHY[note.state] ?? note.state : choice.direction, range ? ` · 95 % interval ${range}` : ""),
    isBest && make("div", {className: "good"}, "● best source for this target layer"),
    ...claimTexts(k), scoreTable(k, most), factsOf(note),
    note.error ? make("pre", {}, note.error.slice(0, 600)) : null,
  ];
  return parts.filter(Boolean);
}

function evidenceText({evidence}, k) {
  return evidence.low ? interval(evidence.low[k], evidence.high[k]) : "";
}

function claimTexts(k) {
  const {sweep, limits} = state;
  return sweep.claimants.map(({label, seed}, n) => {
    const claim = sweep.claim(n, k, limits);
    const word = {[SUPPORTED]: "claims that they are alike; not denied", [UNCHECKED]: "claims that they are alike; unchecked", [MISLEADING]: "misleading: claims that they are alike, and all that was computed denies it"}[claim];
    return word ? make("div", {className: claim === MISLEADING ? "bad" : "faint"}, `${claim === MISLEADING ? "▢ " : ""}${label}${seed === null ? "" : `, seed ${seed}`} ${word}`) : null;
  });
}

/** A table of all scores of a pair: first those that rank layers, then the other metrics (folded if all are listed). */
function scoreTable(k, most) {
  const {sweep} = state, others = sweep.choices.map((_, c) => c).filter((c) => !sweep.choices[c].isScore && !Number.isNaN(sweep.choices[c].values[k]));
  const table = (numbers) => make("table", {className: "scores"}, make("tbody", {}, ...numbers.map((c) => {
    const one = sweep.choices[c], value = one.values[k];
    return make("tr", {className: c === state.choice ? "on" : ""}, make("th", {scope: "row"}, choiceName(one)),
      cellOf(Number.isNaN(value) ? WHY[sweep.noteOf(c, k).state] ?? "–" : exact(value)), cellOf(evidenceText(one, k), {className: "faint"}));
  })));
  if (most === Infinity) return make("div", {}, table(sweep.scores), others.length ? make("details", {}, make("summary", {}, `${others.length} other metrics`), table(others)) : null);
  const shown = [...sweep.scores, ...others].slice(0, most), more = sweep.scores.length + others.length - shown.length;
  return make("div", {}, table(shown), more ? make("div", {className: "faint"}, `and ${more} more when pinned`) : null);
}

function factsOf(note) {
  const images = [
    note.num_eval ? `${note.num_eval.toLocaleString("en")} evaluated` : null,
    note.num_fit ? `${note.num_fit.toLocaleString("en")} fitted` : null,
    note.num_rows ? `${note.num_rows.toLocaleString("en")} rows` : null,
  ].filter(Boolean).join(", ");
  const facts = [["images", images], ["alignment", note.alignment], ["flags", note.flags], ["run", [note.precision, note.device].filter(Boolean).join(" on ")]];
  return make("dl", {}, ...facts.filter(([, text]) => text).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
}

function showTip() {
  const tip = $("tip"), k = state.hover, isSheet = innerWidth < 700;
  const shown = k !== null && k !== state.pin && pointer !== null && !isSheet;
  tip.hidden = !shown;
  if (!shown) return;
  tip.replaceChildren(...tell(k));
  const {offsetWidth: width, offsetHeight: height} = tip, right = pointer.x + 18;
  tip.style.left = `${right + width < innerWidth - 8 ? right : Math.max(4, pointer.x - width - 18)}px`;
  tip.style.top = `${Math.max(4, Math.min(pointer.y - 20, innerHeight - height - 8))}px`;
}

function showSheet() {
  const sheet = $("sheet"), k = state.pin;
  sheet.hidden = k === null;
  if (k === null) return;
  $("sheet-body").replaceChildren(...tell(k, {most: Infinity}));
}

listen("hover pin choice sweep limits", showTip);
listen("pin choice sweep limits", showSheet);
