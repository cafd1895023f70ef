// Elements of the page. All text becomes text nodes; nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; attributes that are functions become listeners ("onclick" without the "on"), null and false ones are left out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Ask this server; a body makes it a request that changes something. The answer is JSON; an error has the server's message. */
export async function ask(path, body) {
  const how = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...how, cache: "no-store" });
  const content = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/** Put what is made of a value into its place, unless it is there already: what is pressed or focused stays. */
export function put(place, value, make) {
  const said = JSON.stringify(value);
  if (place.said === said) return;
  place.said = said;
  place.replaceChildren(...make(value).filter((child) => child !== null));
}

/** A number as a reader wants it. */
export function shown(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const words = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return words.replace("-", "−");
}

/** Rows of names and values. */
export function table(rows, differing = new Set()) {
  return element("dl", { class: "settings" }, ...rows.flatMap(([name, value]) => {
    const mark = differing.has(name) ? "differs" : null;
    return [element("dt", { class: mark }, name), element("dd", { class: mark }, value)];
  }));
}
