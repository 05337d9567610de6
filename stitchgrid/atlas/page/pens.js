/* A pen that writes SVG. It has the methods of a canvas context that the views use, so the same code draws both. */

const number = (value) => String(Math.round(value * 100) / 100);
const escaped = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "\ufffd").replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

class SvgPen {
  constructor(width, height) {
    Object.assign(this, {width, height, parts: [], path: "", moves: "", stack: [], dashes: []});
    Object.assign(this, {fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, font: font(12), textAlign: "left", textBaseline: "alphabetic", globalAlpha: 1});
  }

  save() {
    const {fillStyle, strokeStyle, lineWidth, font: letters, textAlign, textBaseline, globalAlpha, moves, dashes} = this;
    this.stack.push({fillStyle, strokeStyle, lineWidth, font: letters, textAlign, textBaseline, globalAlpha, moves, dashes});
  }

  restore() { Object.assign(this, this.stack.pop()); }
  translate(x, y) { this.moves += `translate(${number(x)} ${number(y)})`; }
  rotate(angle) { this.moves += `rotate(${number(angle * 180 / Math.PI)})`; }
  setLineDash(dashes) { this.dashes = dashes; }
  beginPath() { this.path = ""; }
  moveTo(x, y) { this.path += `M${number(x)} ${number(y)}`; }
  lineTo(x, y) { this.path += `${this.path ? "L" : "M"}${number(x)} ${number(y)}`; }
  closePath() { this.path += "Z"; }
  rect(x, y, width, height) { this.path += `M${number(x)} ${number(y)}h${number(width)}v${number(height)}h${number(-width)}Z`; }

  arc(x, y, radius) {
    const r = number(radius);
    this.path += `M${number(x - radius)} ${number(y)}a${r} ${r} 0 1 0 ${number(2 * radius)} 0a${r} ${r} 0 1 0 ${number(-2 * radius)} 0Z`;
  }

  fill() { this.add("path", `d="${this.path}" ${this.inked("fill", this.fillStyle)}`); }
  stroke() { this.add("path", `d="${this.path}" ${this.lined()}`); }
  fillRect(x, y, width, height) { this.add("rect", `${this.box(x, y, width, height)} ${this.inked("fill", this.fillStyle)}`); }
  strokeRect(x, y, width, height) { this.add("rect", `${this.box(x, y, width, height)} ${this.lined()}`); }

  fillText(text, x, y) {
    const [, weight, size] = /^(\d+) ([\d.]+)px/.exec(this.font) ?? [null, 400, 12];
    const anchor = {left: "start", center: "middle", right: "end"}[this.textAlign];
    const base = {alphabetic: 0, middle: 0.35, top: 0.8, bottom: -0.2}[this.textBaseline] * size;
    this.parts.push(`<text x="${number(x)}" y="${number(y + base)}" font-family="sans-serif" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}" ${this.inked("fill", this.fillStyle)}${this.moved()}>${escaped(text)}</text>`);
  }

  measureText(text) {
    SvgPen.ruler ??= document.createElement("canvas").getContext("2d");
    SvgPen.ruler.font = this.font;
    return SvgPen.ruler.measureText(text);
  }

  add(tag, attributes) { this.parts.push(`<${tag} ${attributes}${this.moved()}/>`); }
  moved() { return this.moves ? ` transform="${this.moves}"` : ""; }
  box(x, y, width, height) { return `x="${number(x)}" y="${number(y)}" width="${number(width)}" height="${number(height)}"`; }
  inked(kind, ink) { return `${kind}="${ink}"${this.globalAlpha < 1 ? ` ${kind}-opacity="${number(this.globalAlpha)}"` : ""}`; }
  lined() { return `fill="none" ${this.inked("stroke", this.strokeStyle)} stroke-width="${number(this.lineWidth)}"${this.dashes.length ? ` stroke-dasharray="${this.dashes.join(" ")}"` : ""}`; }

  text() {
    const size = `width="${number(this.width)}" height="${number(this.height)}" viewBox="0 0 ${number(this.width)} ${number(this.height)}"`;
    return `<svg xmlns="http://www.w3.org/2000/svg" ${size}>\n${this.parts.join("\n")}\n</svg>\n`;
  }
}
