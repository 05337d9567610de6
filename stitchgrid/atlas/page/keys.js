/* Keys for the whole page, and the search for layers. */

const MOST_FOUND = 30;
let chosen = 0;

function nextScore(direction) {
  const {sweep, choice} = state, order = state.every ? sweep.choices.map((_, c) => c) : [...new Set([...sweep.scores, choice])].sort((a, b) => a - b);
  const c = order[(order.indexOf(choice) + direction + order.length) % order.length];
  set({choice: c});
  announce(`Score: ${choiceName(sweep.choices[c])}`);
}

addEventListener("keydown", (event) => {
  if (!state.sweep || event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.closest?.("input[type=search], textarea");
  if (event.key === "Escape") {
    if (isTyping) closeSearch();
    else free();
  }
  if (isTyping || event.target.closest?.("select")) return;
  if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
    $("search").select();
  } else if (event.key === "[") nextScore(-1);
  else if (event.key === "]") nextScore(1);
});

/** Layers whose names contain all the words; layers of the chosen target and source come first. */
function findLayers(text) {
  const {sweep, source, target} = state, words = text.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  if (!words.length) return [];
  const order = [...new Set([target, source, ...sweep.networks.keys()])];
  for (const n of order) {
    const network = sweep.networks[n];
    for (let layer = 0; layer < network.layers.length; layer++) {
      const name = `${network.name} ${network.layers[layer].name}`.toLowerCase();
      if (words.every((word) => name.includes(word))) found.push({network: n, layer});
      if (found.length === MOST_FOUND) return found;
    }
  }
  return found;
}

/** Pin a layer as the target, with its best source; pin it as a source if it is a target of no pair. */
function pinLayer({network, layer}) {
  const {sweep, choice} = state, pairs = Array.from(sweep.sources.keys());
  const fits = (ends) => pairs.filter((p) => ends[p] === network).sort((a, b) => (sweep.sources[b] === state.source) - (sweep.sources[a] === state.source));
  const asTarget = fits(sweep.targets)[0], p = asTarget ?? fits(sweep.sources)[0];
  if (p === undefined) return;
  const block = sweep.block(p), best = sweep.best(choice, p);
  let other = 0;
  const at = (n) => asTarget === undefined ? layer * block.columns + n : n * block.columns + layer;
  for (let n = (asTarget === undefined ? block.columns : block.rows) - 1; n >= 0; n--) if (best[at(n)]) other = n;
  pin(block.start + at(other));
}

function showFound() {
  const found = findLayers($("search").value), {networks} = state.sweep;
  chosen = Math.min(chosen, Math.max(0, found.length - 1));
  $("found").hidden = !found.length;
  $("found").replaceChildren(...found.map((one, n) => {
    const item = make("li", {role: "option", className: n === chosen ? "on" : "", onpointerdown: (event) => { event.preventDefault(); take(one); }},
      make("b", {}, make("bdi", {}, networks[one.network].name)), " ", make("bdi", {}, networks[one.network].layers[one.layer].name));
    item.setAttribute("aria-selected", n === chosen);
    return item;
  }));
  return found;
}

function take(one) {
  closeSearch();
  pinLayer(one);
}

function closeSearch() {
  $("found").hidden = true;
  $("search").blur();
}

$("search").addEventListener("input", () => { chosen = 0; showFound(); });
$("search").addEventListener("focus", showFound);
$("search").addEventListener("blur", () => { $("found").hidden = true; });
$("search").addEventListener("keydown", (event) => {
  const move = {ArrowDown: 1, ArrowUp: -1}[event.key], found = findLayers($("search").value);
  if (move && found.length) {
    event.preventDefault();
    chosen = (chosen + move + found.length) % found.length;
    showFound();
  }
  if (event.key === "Enter" && found.length) take(found[Math.min(chosen, found.length - 1)]);
});
