"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151",
  "#bddf26", "#fde725"];
const SMALLEST = 13, LARGEST = 46, READABLE = 34; // side of a square in pixels; from READABLE on it holds its number
const AT_ONCE = 10000; // squares drawn when a choice is made; beyond, a panel is drawn when it comes into view
const WHY = {
  absent: "not part of the sweep", undefined: "undefined here", failed: "failed", quarantined: "quarantined",
  running: "running", pending: "not computed yet",
};

let sweep = data.sweeps[0], choice = null, drawer = null, width = innerWidth;
const $ = (id) => document.getElementById(id);

/* Elements. Text only ever arrives as text nodes: names in a store may be anything. */

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* Numbers and colours */

const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const exact = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(6))) : value > 0 ? "∞" : "−∞";

function brief(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return exact(value);
  if (size >= 1e4) return value.toExponential(0).replace("e+", "e");
  return value.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0).replace("-", "−");
}

/** Where a value lies on the colour scale: 1 is the end that means more similar. */
function position(value, {scale, higherIsSimilar}) {
  const bend = scale.is_log ? Math.log : (x) => x;
  const clipped = Math.min(Math.max(value, scale.low), scale.high);
  const place = (bend(clipped) - bend(scale.low)) / (bend(scale.high) - bend(scale.low));
  return higherIsSimilar === false ? 1 - place : place;
}

function colour(place) {
  const at = place * (VIRIDIS.length - 1), below = Math.min(Math.floor(at), VIRIDIS.length - 2), share = at - below;
  const channel = (stop, k) => parseInt(VIRIDIS[stop].slice(1 + 2 * k, 3 + 2 * k), 16);
  const mix = (k) => Math.round(channel(below, k) * (1 - share) + channel(below + 1, k) * share);
  return `rgb(${mix(0)} ${mix(1)} ${mix(2)})`;
}

const contrast = (place) => place > 0.45 ? "#14141a" : "#ffffff";

/* The header and the table of networks */

function describe() {
  const layers = sweep.networks.reduce((sum, network) => sum + network.layers.length, 0);
  const {done = 0, failed = 0, quarantined = 0, pending = 0, running = 0} = sweep.cells;
  const images = [
    sweep.numEval.length ? `${sweep.numEval.map((n) => n.toLocaleString("en")).join(" or ")} evaluation images` : null,
    sweep.numFit.length ? `maps fitted on ${sweep.numFit.map((n) => n.toLocaleString("en")).join(" or ")}` : null,
  ];
  const days = sweep.computed && [...new Set(sweep.computed)].join(" to ");
  const facts = [
    plural(sweep.networks.length, "network"), plural(layers, "layer"),
    `matched by ${[...new Set(sweep.choices.map((one) => one.label))].join(", ")}`,
    ...images, days ? `computed ${days}` : null,
  ];
  $("title").textContent = sweep.name;
  $("lede").replaceChildren(facts.filter(Boolean).join(" · "));
  const lost = failed + quarantined, left = pending + running;
  const state = [
    done ? plural(done, "cell") + " done" : "Nothing is computed yet",
    lost ? `${lost.toLocaleString("en")} failed` : null, left ? `${left.toLocaleString("en")} to come` : null,
  ].filter(Boolean).join(", ");
  $("lede").append(" · ", make("span", {className: lost || left ? "problem" : ""}, state));
}

function tabulate() {
  const columns = [...new Map(sweep.judgements.map((one) => [one.choice, one.label])).entries()];
  const head = make("tr", {}, ...["Network", "Architecture", "Parameters", "Layers", "Clean accuracy"].map((name, k) =>
    make("th", {scope: "col", className: k > 1 ? "number" : ""}, name)));
  for (const [, label] of columns) head.append(make("th", {scope: "col", className: "verdict"}, label));
  const body = sweep.networks.map((network) => {
    const row = make("tr", {}, make("th", {scope: "row"}, network.name), make("td", {}, network.architecture));
    const numbers = [network.num_parameters.toLocaleString("en"), network.layers.length,
      network.accuracy === null ? "–" : network.accuracy.toFixed(3)];
    row.append(...numbers.map((text) => make("td", {className: "number"}, String(text))));
    for (const [number] of columns) row.append(make("td", {className: "verdict"}, verdict(network.name, number)));
    return row;
  });
  const remarks = sweep.networks.flatMap((network) => network.remarks.map((text) =>
    make("li", {}, make("b", {}, network.name), `: ${text}`)));
  $("remarks").replaceChildren(...remarks);
  $("remarks").hidden = !remarks.length;
  $("diagonal").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("incomplete").hidden = !sweep.judgements.some((one) => one.num_missing);
}

function verdict(name, number) {
  const found = sweep.judgements.find((one) => one.network === name && one.choice === number);
  if (!found || !found.num_judged) return "–";
  const button = count(number, found.num_violations, found.num_judged, found.num_missing, found.violations);
  button.setAttribute("aria-label", `${found.label}, ${name}: ${found.num_violations} of ${found.num_judged} layers`);
  return button;
}

/** A number out of a number that leads to the heat maps of a choice; a star where some are not known. */
function count(number, part, whole, unknown, names) {
  return make("button", {
    type: "button", className: part ? "lost" : "", title: names.join("\n"),
    onclick: () => { select(number); $("grids-title").scrollIntoView({behavior: "smooth"}); },
  }, make("b", {}, String(part)), ` of ${whole}${unknown ? " *" : ""}`);
}

function mislead() {
  const columns = [...new Map(sweep.claims.map((one) => [one.choice, one.label])).entries()];
  const pairs = new Map();
  for (const one of sweep.claims) {
    const key = `${one.source} ${one.target}`;
    if (!pairs.has(key)) pairs.set(key, new Map());
    pairs.get(key).set(one.choice, one);
  }
  const head = make("tr", {}, make("th", {scope: "col"}, "Source"), make("th", {scope: "col"}, "Target"));
  for (const [, label] of columns) head.append(make("th", {scope: "col", className: "verdict"}, `${label}: misleading claims`));
  const body = [...pairs.values()].map((claims) => {
    const {source, target} = claims.values().next().value, names = [sweep.networks[source].name, sweep.networks[target].name];
    const row = make("tr", {}, ...names.map((name) => make("th", {scope: "row"}, name)));
    for (const [number] of columns) row.append(make("td", {className: "verdict"}, claimed(claims.get(number), names)));
    return row;
  });
  $("misled").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("misled-rule").textContent = data.misleadingRule;
  $("misled-section").hidden = !sweep.claims.length;
  $("unchecked").hidden = !sweep.claims.some((one) => one.num_unchecked);
}

function claimed(found, [source, target]) {
  if (!found) return "–";
  const button = count(found.choice, found.num_misleading, found.num_claims, found.num_unchecked, found.pairs);
  button.setAttribute("aria-label",
    `${found.label}, ${source} into ${target}: ${found.num_misleading} of ${plural(found.num_claims, "claim")} misleading`);
  return button;
}

/* What can be chosen, and the legend */

const entry = (one) => one.label + (one.seed === null ? "" : `, seed ${one.seed}`);

function offer() {
  const groups = new Map();
  sweep.choices.forEach((one, number) => {
    const name = entry(one);
    if (!groups.has(name)) groups.set(name, make("optgroup", {label: name}));
    const text = one.metric === name ? name : `${name}: ${one.metric}`;
    groups.get(name).append(make("option", {value: number}, text));
  });
  $("choice").replaceChildren(...groups.values());
  select(Math.max(0, sweep.choices.findIndex((one) => one.isScore)));
}

function select(number) {
  $("choice").value = number;
  choice = sweep.choices[number];
  explain();
  layOut();
}

function explain() {
  const {scale, higherIsSimilar, direction} = choice, steps = VIRIDIS.map((_, k) => k / (VIRIDIS.length - 1));
  const low = (scale.clips_low ? "≤ " : "") + exact(Number(scale.low.toPrecision(3)));
  const high = (scale.clips_high ? "≥ " : "") + exact(Number(scale.high.toPrecision(3)));
  const ramp = make("span", {className: "ramp"});
  ramp.style.background = `linear-gradient(to right, ${steps.map(colour).join(", ")})`;
  const ends = higherIsSimilar === false ? [high, low] : [low, high];
  const mark = (...parts) => shape("svg", {width: 15, height: 15}, ...parts);
  const ground = () => shape("rect", {class: "missing", width: 15, height: 15});
  $("legend").replaceChildren(
    make("span", {}, ends[0], ramp, ends[1]),
    make("span", {}, make("span", {}, direction + (scale.is_log ? ", logarithmic" : ""))),
    make("span", {}, mark(shape("rect", {width: 15, height: 15, fill: colour(0.3)}), dot(7.5, 7.5, 2.5, 0.3)),
      "best source of a target layer"),
    make("span", {}, mark(ground()), "no value"),
    make("span", {}, mark(ground(), cross(0, 0, 15)), "failed"),
  );
  $("legend").children[2].hidden = higherIsSimilar === null;
}

const dot = (x, y, r, place) => shape("circle", {cx: x, cy: y, r, fill: contrast(place)});

function cross(x, y, side) {
  const a = side * 0.28, b = side * 0.72;
  return shape("path", {class: "cross", d: `M${x + a} ${y + a}L${x + b} ${y + b}M${x + b} ${y + a}L${x + a} ${y + b}`});
}

/* The heat maps: one block of panels for each set of networks that were compared with one another */

function layOut() {
  hideTip();
  drawer?.disconnect();
  drawer = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) isIntersecting ? draw(target) : target.replaceChildren();
  }, {rootMargin: "400px"});
  const sizes = sweep.blocks.map(([, targets]) => targets.reduce((sum, t) => sum + sweep.networks[t].layers.length, 0));
  const room = $("figures").clientWidth - 270 - 12 * Math.max(...sweep.blocks.map(([, targets]) => targets.length));
  const side = Math.max(SMALLEST, Math.min(LARGEST, Math.floor(room / Math.max(...sizes))));
  $("figures").className = sweep.blocks.length > 1 ? "many" : "";
  $("figures").replaceChildren(...sweep.blocks.map((block) => figure(block, side)));
  const names = [...document.querySelectorAll(".rows .names")], widest = Math.max(...names.map((one) => one.offsetWidth));
  for (const one of names) one.style.width = `${widest}px`;
  let left = AT_ONCE;
  for (const svg of document.querySelectorAll(".panel")) {
    left -= svg.rows * svg.columns;
    if (left >= 0) draw(svg);
    else drawer.observe(svg);
  }
}

function figure([sources, targets], side) {
  const panels = new Map(choice.panels.map((panel) => [`${panel.source} ${panel.target}`, panel]));
  const matrix = make("div", {className: "matrix", tabIndex: 0});
  matrix.setAttribute("role", "application");
  matrix.setAttribute("aria-label", `Heat maps of ${entry(choice)}, ${choice.metric}; arrow keys move through the squares`);
  matrix.style.fontSize = `${Math.min(11.5, side - 2)}px`;
  matrix.style.gridTemplateColumns = `repeat(${targets.length + 1}, max-content)`;
  matrix.append(make("div", {className: "corner"}, make("span", {}, "target →"), make("span", {}, "source ↓")));
  matrix.append(...targets.map((t) => labels("columns", sweep.networks[t], side)));
  for (const s of sources) {
    matrix.append(labels("rows", sweep.networks[s], side));
    for (const t of targets) {
      const panel = panels.get(`${s} ${t}`);
      matrix.append(panel ? frame(panel, side) : make("div", {className: "none"}, "not compared"));
    }
  }
  matrix.addEventListener("pointermove", follow);
  matrix.addEventListener("pointerleave", hideTip);
  matrix.addEventListener("keydown", steer);
  matrix.addEventListener("blur", hideTip);
  return make("div", {className: "figure"}, matrix);
}

function labels(className, network, side) {
  const across = className === "columns";
  const names = network.layers.map(({name}) => {
    const label = make("span", {title: name}, make("bdi", {}, name.length > 22 ? "…" + name.slice(-21) : name));
    label.style[across ? "width" : "height"] = `${side}px`;
    return label;
  });
  const title = make("strong", {title: network.name}, make("bdi", {}, network.name));
  const box = make("div", {className}, title, make("div", {className: "names"}, ...names));
  if (across) box.style.width = `${side * names.length}px`;
  return box;
}

function frame(panel, side) {
  const rows = sweep.networks[panel.source].layers.length, columns = sweep.networks[panel.target].layers.length;
  const svg = shape("svg", {
    class: panel.source === panel.target ? "panel self" : "panel", width: side * columns, height: side * rows,
  });
  return Object.assign(svg, {panel, side, rows, columns});
}

function draw(svg) {
  const {panel, side, columns} = svg, best = new Set(panel.best), parts = [];
  panel.values.forEach((stored, k) => {
    const x = (k % columns) * side, y = Math.floor(k / columns) * side, square = {x, y, width: side - 1, height: side - 1};
    if (stored === null) {
      parts.push(shape("rect", {...square, class: "missing"}));
      if (["failed", "quarantined"].includes(noteOf(panel, k).state)) parts.push(cross(x, y, side - 1));
      return;
    }
    const value = Number(stored), place = position(value, choice), middle = x + (side - 1) / 2;
    parts.push(shape("rect", {...square, fill: colour(place)}));
    if (side >= READABLE) {
      parts.push(shape("text", {x: middle, y: y + side * 0.46, fill: contrast(place)}, brief(value)));
      if (best.has(k)) parts.push(dot(middle, y + side * 0.78, 2.6, place));
    } else if (best.has(k)) parts.push(dot(middle, y + (side - 1) / 2, Math.max(2, side * 0.13), place));
  });
  svg.replaceChildren(...parts);
}

const noteOf = (panel, k) => sweep.notes[typeof panel.notes === "number" ? panel.notes : panel.notes[k]];

/* One square at a time: pointer, keys and the tip */

let shown = null;

function follow(event) {
  const svg = event.target.closest?.(".panel");
  if (!svg) return hideTip();
  const box = svg.getBoundingClientRect(), limit = (at, size) => Math.min(Math.max(Math.floor(at / svg.side), 0), size - 1);
  show(svg, limit(event.clientY - box.top, svg.rows), limit(event.clientX - box.left, svg.columns));
}

function steer(event) {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (event.key === "Escape") return hideTip();
  if (!step) return;
  event.preventDefault();
  const matrix = event.currentTarget, panels = [...matrix.querySelectorAll(".panel")];
  if (!shown || !matrix.contains(shown.svg)) return show(panels[0], 0, 0, true);
  let {svg, i, j} = shown;
  i += step[0];
  j += step[1];
  if (i < 0 || j < 0 || i >= svg.rows || j >= svg.columns) { // on to the next panel of the same row or column
    const along = panels.filter((one) => step[0] ? one.panel.target === svg.panel.target : one.panel.source === svg.panel.source);
    svg = along[along.indexOf(svg) + step[0] + step[1]];
    if (!svg) return;
    if (step[0]) i = step[0] > 0 ? 0 : svg.rows - 1;
    else j = step[1] > 0 ? 0 : svg.columns - 1;
  }
  show(svg, i, j, true);
}

function show(svg, i, j, reveal = false) {
  if (shown && shown.svg === svg && shown.i === i && shown.j === j) return;
  hideTip();
  if (!svg.childElementCount) draw(svg);
  const {side, panel} = svg;
  const cursor = shape("rect", {class: "cursor", x: j * side, y: i * side, width: side - 1, height: side - 1});
  svg.append(cursor);
  if (reveal) cursor.scrollIntoView({block: "nearest", inline: "nearest"});
  const items = [...svg.parentNode.children], width = items.filter((item) => item.className === "columns").length + 1;
  const at = items.indexOf(svg), heads = [items[at - (at % width)], items[at % width]];
  const marked = [heads[0].querySelectorAll(".names span")[i], heads[1].querySelectorAll(".names span")[j]];
  marked.forEach((label) => label.classList.add("on"));
  shown = {svg, i, j, cursor, marked};
  $("tip").replaceChildren(...tell(panel, i, j));
  $("tip").hidden = false;
  place($("tip"), cursor.getBoundingClientRect());
}

function hideTip() {
  if (!shown) return;
  shown.cursor.remove();
  shown.marked.forEach((label) => label.classList.remove("on"));
  $("tip").hidden = true;
  shown = null;
}

function place(tip, box) {
  const {offsetWidth: width, offsetHeight: height} = tip, right = box.right + 12;
  tip.style.left = `${right + width < innerWidth ? right : Math.max(4, box.left - width - 12)}px`;
  tip.style.top = `${Math.max(4, Math.min(box.top - 8, innerHeight - height - 4))}px`;
}

function tell(panel, i, j) {
  const source = sweep.networks[panel.source], target = sweep.networks[panel.target], k = i * target.layers.length + j;
  const stored = panel.values[k], note = noteOf(panel, k), facts = make("dl");
  const fact = (name, value) => value && facts.append(make("dt", {}, name), make("dd", {}, String(value)));
  const layer = (network, {name, depth, kind, shape: size}) =>
    `${network.name}  ${name} (depth ${depth.toFixed(2)}, ${kind} ${size.join("×")})`;
  fact("from", layer(source, source.layers[i]));
  fact("into", layer(target, target.layers[j]));
  if (panel.best.includes(k)) fact("place", "best source for this target layer");
  fact("images", [
    note.num_eval ? `${note.num_eval.toLocaleString("en")} evaluated` : null,
    note.num_fit ? `${note.num_fit.toLocaleString("en")} fitted` : null,
    note.num_rows ? `${note.num_rows.toLocaleString("en")} rows` : null,
  ].filter(Boolean).join(", "));
  fact("alignment", note.alignment);
  fact("flags", note.flags);
  fact("run", [note.precision, note.device].filter(Boolean).join(" on "));
  const value = stored === null ? [`no value `, make("small", {}, WHY[note.state] ?? note.state)]
    : [exact(Number(stored)) + " ", make("small", {}, choice.direction)];
  return [
    make("div", {className: "small"}, `${entry(choice)} · ${choice.metric}`), make("div", {className: "value"}, ...value), facts,
    ...(note.error ? [make("pre", {}, note.error.slice(0, 600))] : []),
  ];
}

/* Start */

function open(number) {
  sweep = data.sweeps[number];
  describe();
  tabulate();
  mislead();
  offer();
}

function start() {
  $("footer").textContent = `Made by stitchgrid ${data.version}. The page holds all its data and loads nothing.`;
  if (!sweep) {
    $("title").textContent = "No sweeps";
    $("lede").textContent = "The store holds no planned sweep: launch a job, then write the atlas again.";
    return;
  }
  $("main").hidden = false;
  $("sweep").append(...data.sweeps.map(({name}, number) => make("option", {value: number}, name)));
  $("sweep-label").hidden = data.sweeps.length < 2;
  $("sweep").addEventListener("change", () => open(Number($("sweep").value)));
  $("choice").addEventListener("change", () => select(Number($("choice").value)));
  $("figures").addEventListener("scroll", hideTip, true);
  addEventListener("scroll", hideTip);
  addEventListener("resize", () => {
    if (innerWidth !== width) layOut();
    width = innerWidth;
  });
  addEventListener("beforeprint", () => document.querySelectorAll(".panel").forEach(draw));
  open(0);
}

start();
