/* Provenance: job, weights, data, versions, devices, flags and failures. */

function provenanceTable(title, heads, rows) {
  if (!rows.length) return null;
  return [make("h3", {}, title), make("div", {className: "scroll"}, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => headOf(head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => cellOf(text ?? "–")))))))];
}

const digest = (text) => text ? make("code", {title: text}, text.slice(0, 12)) : null;

function drawProvenance() {
  const {networks, provenance: {runs = [], flags = [], failures = [], job = ""}} = state.sweep;
  const days = (run) => [...new Set([run.first_at, run.last_at].map((at) => (at ?? "").slice(0, 10)))].join(" to ");
  $("provenance-body").replaceChildren(...[
    provenanceTable("Runs", ["stitchgrid", "Data", "Precision", "Device", "Cells", "Computed"], runs.map((run) => [run.version, digest(run.data), run.precision, run.device, run.num_cells.toLocaleString("en"), days(run)])),
    provenanceTable("Networks", ["Network", "Architecture", "Arguments", "Weights", "Network digest", "Preprocessing", "Head", "Chance"], networks.map(({name, architecture, origin}) => [
      name, architecture, origin.args === "{}" ? "–" : origin.args, digest(origin.weights_digest), digest(origin.network_id), origin.preprocess, origin.head, origin.chance === undefined ? null : short(origin.chance)])),
    provenanceTable("Flags", ["Flag", "Cells", "Matchers"], flags.map(({flag, num_cells: cells, matchers}) => [flag, cells.toLocaleString("en"), matchers])),
    provenanceTable("Failures", ["What happened", "Error", "Cells", "Matchers", "For instance"], failures.map((one) => [one.status, make("pre", {}, one.error ?? ""), one.num_cells.toLocaleString("en"), one.matchers, one.example])),
    job ? make("details", {}, make("summary", {}, "The job"), make("pre", {className: "job"}, job)) : null,
    state.sweep.isRounded ? make("p", {className: "small"}, "The page keeps six digits of every number; the store has all of them.") : null,
  ].flat().filter(Boolean));
}

listen("sweep", drawProvenance);
