/* A chart: a canvas with a drawing that is kept, over which moving parts (crosshair, brush) are drawn in each frame. */

const charts = [];
let light = null; // the colours of the page, read once

const inks = () => (light ??= theme());

/** Read the colours again and draw everything, after a change between dark and light, or for printing. */
function repaintAll() {
  light = null;
  for (const chart of charts) if (chart.canvas.isConnected) chart.repaint();
}

class Chart {
  /**
   * `measure(width)` returns the height for a width; `paint(pen, size)` draws the fixed part, `over(pen, size)` the moving
   * part; `at(x, y)` returns the layer pair at a position (null for none); `move`, `press` and `key` handle events.
   */
  constructor(host, {name, label, measure, paint, over = () => {}, at = () => null, move = null, press = null, key = null, csv = null, sql = null}) {
    Object.assign(this, {host, name, measure, paint, over, at, move, key, csv, sql, width: 0, height: 0, isHeld: false});
    this.canvas = make("canvas", {tabIndex: 0, role: "img", label});
    this.base = document.createElement("canvas");
    host.append(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.pointed(event));
    this.canvas.addEventListener("pointerleave", () => set({hover: null}));
    this.canvas.addEventListener("pointerdown", (event) => { this.isHeld = press?.(this.place(event), event) === true; });
    this.canvas.addEventListener("click", (event) => this.clicked(event));
    this.canvas.addEventListener("keydown", (event) => this.key?.(event));
    charts.push(this);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {x: (event.clientX - box.left) * this.width / (box.width || 1), y: (event.clientY - box.top) * this.height / (box.height || 1)};
  }

  pointed(event) {
    const {x, y} = this.place(event);
    if (this.move?.({x, y}, event)) return;
    const k = this.at(x, y);
    set({hover: k});
    pointer = {x: event.clientX, y: event.clientY, isTouch: event.pointerType === "touch"};
  }

  clicked(event) {
    if (this.isHeld) return;
    const {x, y} = this.place(event), k = this.at(x, y);
    if (k !== null) pin(k);
  }

  repaint() {
    this.width = Math.max(1, Math.floor(this.host.clientWidth));
    this.height = Math.max(1, Math.ceil(this.measure(this.width)));
    const ratio = Math.min(window.devicePixelRatio || 1, 3);
    for (const canvas of [this.canvas, this.base]) Object.assign(canvas, {width: Math.round(this.width * ratio), height: Math.round(this.height * ratio)});
    Object.assign(this.canvas.style, {width: `${this.width}px`, height: `${this.height}px`});
    const pen = this.base.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paint(pen, this);
    this.refresh();
  }

  refresh() {
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.base, 0, 0);
    const ratio = this.canvas.width / this.width;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.over(pen, this);
  }

  svg() {
    const pen = new SvgPen(this.width, this.height);
    pen.fillStyle = inks().paper;
    pen.fillRect(0, 0, this.width, this.height);
    this.paint(pen, this);
    this.over(pen, this);
    return pen.text();
  }

  /** The drawing as a PNG, on the background colour of the page. */
  png() {
    const copy = Object.assign(document.createElement("canvas"), {width: this.canvas.width, height: this.canvas.height}), pen = copy.getContext("2d");
    pen.fillStyle = inks().paper;
    pen.fillRect(0, 0, copy.width, copy.height);
    pen.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }
}

function write(pen, text, x, y, {size = 11, weight = 400, ink = inks().soft, align = "left", base = "middle", turn = 0} = {}) {
  pen.save();
  Object.assign(pen, {font: font(size, weight), fillStyle: ink, textAlign: align, textBaseline: base});
  if (turn) {
    pen.translate(x, y);
    pen.rotate(turn);
    pen.fillText(text, 0, 0);
  } else pen.fillText(text, x, y);
  pen.restore();
}

const widths = new Map();

function widthOf(pen, text, size = 11, weight = 400) {
  const key = `${size} ${weight} ${text}`;
  if (widths.size > 20000) widths.clear();
  if (!widths.has(key)) {
    pen.font = font(size, weight);
    widths.set(key, pen.measureText(text).width);
  }
  return widths.get(key);
}

function line(pen, points, {ink = inks().ink, width = 1, dashes = [], alpha = 1} = {}) {
  pen.save();
  Object.assign(pen, {strokeStyle: ink, lineWidth: width, globalAlpha: alpha});
  pen.setLineDash(dashes);
  pen.beginPath();
  points.forEach(([x, y], n) => n ? pen.lineTo(x, y) : pen.moveTo(x, y));
  pen.stroke();
  pen.restore();
}

function disc(pen, x, y, radius, ink, edge = null) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = ink;
  pen.fill();
  if (edge) {
    Object.assign(pen, {strokeStyle: edge, lineWidth: 1.5});
    pen.stroke();
  }
}
