/* Elements. Text is only inserted as text nodes, because names in a store may hold any characters. */

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const {role, label, ...rest} = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const cellOf = (content, properties = {}) => make("td", properties, content);
const headOf = (content, properties = {}) => make("th", {scope: "col", ...properties}, content);

/** A button that is text. */
const textButton = (text, onclick, properties = {}) => make("button", {type: "button", className: "quiet", onclick, ...properties}, text);

/** Announce a text to users of screen readers. */
function announce(text) {
  $("live").textContent = text;
}

/** The colours of the page as they are now, light or dark. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "soft", "rule", "ground", "hatch", "accent", "raised"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, Inter, "Helvetica Neue", "Liberation Sans", sans-serif';
const font = (size, weight = 400) => `${weight} ${size}px ${FONT}`;
