/* Copy the content of a view as SQL, CSV, PNG or SVG to the clipboard, or save a file if the clipboard cannot be used. */

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const field = (value) => typeof value === "number" ? (Number.isNaN(value) ? "" : String(Number(value.toPrecision(state.sweep.isRounded ? 6 : 17)))) : /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : String(value);
const csvText = (rows) => rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";

/** Conditions that select the cells of a choice. */
function choiceSql(c) {
  const {matcher, metric, seed, params} = state.sweep.choices[c];
  return [`sweep = ${quoted(state.sweep.name)}`, `matcher = ${quoted(matcher)}`, `params = ${quoted(params)}`, seed === null ? "seed is null" : `seed = ${seed}`, `metric = ${quoted(metric)}`];
}

function networksSql() {
  const {sweep, source, target} = state;
  return [`source_model = ${quoted(sweep.networks[source].name)}`, `target_model = ${quoted(sweep.networks[target].name)}`];
}

const selectSql = (columns, view, conditions, order) => `select ${columns}\nfrom ${view}\nwhere ${conditions.join("\n  and ")}\norder by ${order}\n`;
const pairSql = () => selectSql("source_layer, target_layer, value, low, high", "results", [...choiceSql(state.choice), ...networksSql()], "source_index, target_index");
const everySql = (...which) => selectSql("source_model, source_layer, target_model, target_layer, matcher, metric, seed, value", "results",
  [`sweep = ${quoted(state.sweep.name)}`, `(${which.map((c) => `(${choiceSql(c).slice(1).join(" and ")})`).join("\n    or ")})`], "source_model, target_model, target_index, source_index, matcher, metric, seed");

/** All scores of all layer pairs of the two networks. */
function pairCsv() {
  const {sweep} = state, p = current(), head = ["source_model", "source_layer", "target_model", "target_layer"];
  if (p < 0) return csvText([head]);
  const block = sweep.block(p), rows = [[...head, ...sweep.choices.map(choiceName)]];
  for (let k = block.start; k < block.start + block.rows * block.columns; k++) {
    const names = sweep.names(sweep.locate(k));
    rows.push([names.source, names.sourceLayer, names.target, names.targetLayer, ...sweep.choices.map(({values}) => values[k])]);
  }
  return csvText(rows);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", {value: text, className: "unseen"});
    document.body.append(area);
    area.select();
    const worked = document.execCommand("copy");
    area.remove();
    return worked;
  }
}

async function copyPicture(blob) {
  try {
    await navigator.clipboard.write([new ClipboardItem({[blob.type]: blob})]);
    return true;
  } catch {
    return false;
  }
}

function save(blob, name) {
  const link = make("a", {download: name});
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Copy one view in one form, and announce it. */
async function copyView(view, form) {
  const chart = charts.find(({name, canvas}) => name === view && canvas.isConnected), source = TEXTS[view] ?? chart;
  const text = form === "SVG" ? chart.svg() : form === "SQL" ? source.sql() : form === "CSV" ? source.csv() : null;
  const blob = text === null ? await chart.png() : new Blob([text], {type: form === "SVG" ? "image/svg+xml" : "text/plain"});
  const worked = text === null ? await copyPicture(blob) : await copyText(text);
  if (!worked) save(blob, `${state.sweep.name}-${view}.${form.toLowerCase()}`.replace(/[^\w.-]+/g, "_"));
  announce(`${view} ${worked ? "copied" : "saved"} as ${form}.`);
  return worked;
}

/** The texts of views that are tables. */
const TEXTS = {answers: {sql: () => answersSql(), csv: () => answersCsv()}};

for (const place of document.querySelectorAll(".copy")) {
  const {view} = place.dataset, forms = TEXTS[view] ? ["SQL", "CSV"] : ["SQL", "CSV", "PNG", "SVG"];
  place.append("Copy ", ...forms.map((form) => {
    const button = textButton(form, async () => {
      const worked = await copyView(view, form);
      button.textContent = worked ? "copied" : "saved";
      setTimeout(() => { button.textContent = form; }, 1500);
    }, {label: `Copy ${view} as ${form}`});
    return button;
  }));
}
