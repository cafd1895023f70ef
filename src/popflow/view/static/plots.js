// Plots of curves: inline SVG in the colours of the reports, as wide as their place.

import { drawn, element, shown } from "./elements.js";

const HEIGHT = 170, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24, COLOURS = 7;

/** Metrics by name, each with a curve for every stage; those of effective sample sizes apart. */
export function grouped(curves) {
  const groups = new Map();
  for (const curve of curves) groups.set(curve.name, [...(groups.get(curve.name) ?? []), curve]);
  const strips = [...groups].filter(([name]) => /(^|[^a-z])ess($|[^a-z])/i.test(name));
  return { strips, plots: [...groups].filter(([name]) => name !== "t" && !strips.some(([strip]) => strip === name)) };
}

/** The range of steps and values of curves; two runs side by side share it. */
export function rangeOf(curves) {
  const range = { x: [Infinity, -Infinity], y: [Infinity, -Infinity] };
  for (const { steps, values } of curves) {
    for (let i = 0; i < steps.length; i++) {
      if (values[i] === null) continue;
      widen(range.x, steps[i]);
      widen(range.y, values[i]);
    }
  }
  return range;
}

export function joined(one, other) {
  return { x: [Math.min(one.x[0], other.x[0]), Math.max(one.x[1], other.x[1])], y: [Math.min(one.y[0], other.y[0]), Math.max(one.y[1], other.y[1])] };
}

function widen(range, value) {
  range[0] = Math.min(range[0], value);
  range[1] = Math.max(range[1], value);
}

/** A plot of one metric. */
export function plot(name, curves, range, width) {
  const [low, high] = range.y;
  if (!Number.isFinite(low)) return framed(name, curves, element("p", { class: "note" }, "No finite value yet."), false);
  const logarithmic = low > 0 && high / low > 1000;
  const f = logarithmic ? Math.log10 : (value) => value;
  const y = scale(padded(f(low), f(high)), [HEIGHT - BOTTOM, TOP]), x = scale(padded(...range.x, 0), [LEFT, width - RIGHT]);
  const figure = canvas(width, HEIGHT, `${name} against step`);
  for (const tick of ticks(...padded(f(low), f(high)), 4)) {
    figure.append(
      drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      drawn("text", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, shown(logarithmic ? 10 ** tick : tick)),
    );
  }
  for (const tick of ticks(...padded(...range.x, 0), 4).filter(Number.isInteger)) {
    figure.append(drawn("text", { x: x(tick), y: HEIGHT - 8, "text-anchor": "middle" }, shown(tick)));
  }
  curves.forEach((curve, i) => figure.append(line(curve, x, (value) => y(f(value)), i)));
  const whole = framed(name, curves, figure, logarithmic);
  point(whole, figure, curves, x);
  return whole;
}

/** The effective sample size of one stage as a strip: full where all particles count, empty where one does. */
export function strip(name, curve, width) {
  const height = 32, finite = curve.values.filter((value) => value !== null), most = Math.max(1, ...finite);
  const range = rangeOf([curve]), x = scale(padded(...(finite.length ? range.x : [0, 1]), 0), [0, width]);
  const figure = canvas(width, height, `${name} of ${curve.stage}`);
  figure.append(drawn("rect", { class: "back", x: 0, y: 0, width, height, rx: 4 }));
  let area = `M0 ${height}`;
  curve.steps.forEach((step, i) => {
    const from = x(step).toFixed(1), to = (i + 1 < curve.steps.length ? x(curve.steps[i + 1]) : width).toFixed(1);
    area += `L${from} ${(height * (1 - (curve.values[i] ?? 0) / most)).toFixed(1)}H${to}`;
  });
  figure.append(drawn("path", { class: "ess", d: `${area}V${height}Z` }));
  const least = finite.length ? `least ${shown(Math.min(...finite))} of ${shown(most)}` : "no finite value";
  return element("figure", { class: "strip" }, element("figcaption", {}, element("b", {}, curve.stage), ` ${least}, now ${shown(curve.last)}`), figure);
}

/** Under the pointer, show the step and the values there instead of the last ones. */
function point(whole, figure, curves, x) {
  const mark = drawn("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM }), steps = [...new Set(curves.flatMap((curve) => curve.steps))];
  const [caption, values] = [whole.querySelector(".at"), [...whole.querySelectorAll(".key b")]];
  figure.addEventListener("pointermove", (event) => {
    const at = event.clientX - figure.getBoundingClientRect().left;
    const step = steps.reduce((best, one) => (Math.abs(x(one) - at) < Math.abs(x(best) - at) ? one : best));
    mark.setAttribute("x1", x(step));
    mark.setAttribute("x2", x(step));
    figure.append(mark);
    caption.textContent = `step ${step}`;
    curves.forEach((curve, i) => {
      const k = curve.steps.indexOf(step);
      values[i].textContent = k < 0 ? "" : shown(curve.values[k]);
    });
  });
  figure.addEventListener("pointerleave", () => {
    mark.remove();
    caption.textContent = "";
    curves.forEach((curve, i) => { values[i].textContent = shown(curve.last); });
  });
}

function framed(name, curves, body, logarithmic) {
  const keys = curves.map((curve, i) => element("span", { class: `key ${look(i)}` }, curve.stage, element("b", {}, shown(curve.last))));
  const caption = element("figcaption", {}, element("b", {}, name), logarithmic ? element("small", {}, "logarithmic") : null, element("small", { class: "at" }));
  return element("figure", { class: "plot" }, caption, body, element("p", { class: "keys" }, ...keys));
}

/** Colour of a curve; after the last one they begin again, dashed. */
function look(i) {
  return `c${i % COLOURS}${Math.floor(i / COLOURS) % 2 ? " dashed" : ""}`;
}

function canvas(width, height, label) {
  return drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

/** One curve; a value that is not finite is a gap, a lone value a dot. */
function line(curve, x, y, i) {
  let path = "", pen = false;
  const dots = [];
  for (let k = 0; k < curve.steps.length; k++) {
    if (curve.values[k] === null) { pen = false; continue; }
    const point = `${x(curve.steps[k]).toFixed(1)} ${y(curve.values[k]).toFixed(1)}`;
    path += `${pen ? "L" : "M"}${point}`;
    const alone = !pen && (k + 1 === curve.steps.length || curve.values[k + 1] === null);
    if (alone) dots.push(drawn("circle", { cx: x(curve.steps[k]), cy: y(curve.values[k]), r: 2.5 }));
    pen = true;
  }
  return drawn("g", { class: `curve ${look(i)}` }, drawn("path", { d: path }), ...dots);
}

/** From an interval to another; one that has no length goes to the middle. */
function scale([low, high], [from, to]) {
  return (value) => (high > low ? from + ((value - low) / (high - low)) * (to - from) : (from + to) / 2);
}

function padded(low, high, share = 0.05) {
  const more = high > low ? (high - low) * share : 0;
  return [low - more, high + more];
}

/** Round numbers in an interval. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high && found.length < 20; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
