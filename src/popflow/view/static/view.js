// The page: the list of runs, and what is chosen from it. The part after # says what: a run, two runs side by side (KEY+KEY), or the form (new).

import { ask, element, put } from "./elements.js";
import { Form } from "./form.js";
import { Run, badge, progress } from "./run.js";

const EVERY = 1200, entries = new Map();
const list = document.getElementById("runs"), main = document.getElementById("main"), trouble = document.getElementById("trouble");
let runs = [], shown = [], form = null, place = null, timer = 0, busy = false;

function chosen() {
  const hash = decodeURIComponent(location.hash.slice(1));
  return hash === "new" ? "new" : hash.split("+").filter((key) => runs.some((run) => run.key === key)).slice(0, 2);
}

/** Show what the address says; panels of runs that stay are kept. */
function lay() {
  const what = chosen(), now = JSON.stringify(what);
  document.getElementById("begin").classList.toggle("chosen", what === "new");
  if (now === place) return;
  place = now;
  const before = shown;
  shown = what === "new" ? [] : what.map((key) => before.find((run) => run.key === key) ?? new Run(key, (asked) => asked.then(tick, fail)));
  before.filter((run) => !shown.includes(run)).forEach((run) => run.close());
  shown.forEach((run, i) => run.compare(shown.length === 2 ? shown[1 - i] : undefined));
  main.className = shown.length === 2 ? "two" : "";
  if (what === "new" && form) main.replaceChildren(form.body);
  else if (shown.length) main.replaceChildren(...shown.map((run) => run.body));
  else main.replaceChildren(element("p", { class: "empty" }, runs.length ? "Choose a run, or start a new one." : "No runs yet. Start one with “New run”, or with the command popflow."));
  document.title = [...shown.map(({ key }) => runs.find((run) => run.key === key).name), "popflow"].join(" · ");
  if (what === "new" || shown.some((run) => !before.includes(run))) scrollTo(0, 0);
  shown.forEach((run) => run.draw());
}

/** The entry of a run in the list; it stays as long as the run does. */
function entry(run) {
  if (!entries.has(run.key)) entries.set(run.key, element("li", {}, element("div"), element("div")));
  const keys = shown.map((one) => one.key), mine = keys.includes(run.key), item = entries.get(run.key);
  const side = mine && keys.length === 2 ? ["alone", run.key] : keys.length && !mine ? ["beside", `${keys[0]}+${run.key}`] : null;
  item.className = mine ? "mine" : "";
  put(item.firstChild, [run.name, run.state, run.stopping, run.job, mine, side], () => [
    element("a", { class: "name", href: `#${run.key}`, "aria-current": mine ? "true" : null }, run.name),
    element("p", { class: "line" }, badge(run), element("span", {}, run.job), side ? element("a", { class: "side", href: `#${side[1]}` }, side[0]) : null)]);
  put(item.lastChild, run.progress, () => [progress(run)]);
  return item;
}

async function refresh() {
  const state = await ask("state");
  runs = state.runs.sort((one, other) => other.changed - one.changed);
  document.getElementById("where").textContent = state.roots.join(", ");
  lay();
  const items = runs.map(entry);
  if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) list.replaceChildren(...items);
  shown.forEach((one) => one.tell(runs.find((run) => run.key === one.key)));
  const behind = await Promise.all(shown.map((run) => run.update()));
  return behind.includes(true);
}

async function tick() {
  if (busy) return;
  busy = true;
  clearTimeout(timer);
  let wait = EVERY;
  try {
    if (!document.hidden) wait = (await refresh()) ? 0 : EVERY;
    trouble.hidden = true;
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
  }
  timer = setTimeout(tick, wait);
}

function fail(error) {
  trouble.textContent = error instanceof TypeError ? "The server does not answer. Runs go on without it; start `popflow view` again to see them." : error.message;
  trouble.hidden = false;
}

async function begin() {
  try {
    form = new Form(await ask("forms"), async (key) => {
      await tick();
      location.hash = key;
    });
  } catch (error) {
    fail(error);
  }
  addEventListener("hashchange", () => {
    lay();
    tick();
  });
  document.addEventListener("visibilitychange", tick);
  await tick();
}

begin();
