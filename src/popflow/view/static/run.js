// One run: where it stands, what can be done with it, its curves, its population, its settings and its log.

import { ask, element, put, table } from "./elements.js";
import { grouped, joined, plot, rangeOf, strip } from "./plots.js";
import { Population } from "./population.js";



/** The state of a run as a mark. */
export function badge(run) {
  return element("span", { class: `state ${run.state}` }, run.stopping ? "stopping" : run.state);
}

/** The bar of a run's progress, or null. */
export function progress(run) {
  if (!run.progress) return null;
  const [stage, done, total] = run.progress;
  return element("p", { class: "progress" }, element("progress", { value: done, max: total || 1, "aria-label": stage }), element("span", {}, `${stage} ${done}/${total}`));
}

export class Run {
  constructor(key, told) {
    this.key = key;
    this.told = told;
    this.version = -1;
    this.curves = [];
    [this.title, this.bar, this.outcome, this.verdict] = Array.from({ length: 4 }, () => element("div"));
    this.acts = element("p", { class: "acts" });
    this.head = element("header", { class: "head" }, this.title, this.bar, this.acts, this.outcome, this.verdict);
    this.reading = element("p", { class: "note" });
    this.strips = element("div", { class: "strips" });
    this.plots = element("div", { class: "plots" });
    this.population = new Population(key);
    this.settings = element("div", {});
    this.log = element("pre", { class: "log" });
    this.facts = element("div", {});
    this.body = element("article", { class: "run", "aria-label": "Run" }, this.head,
      section("Effective sample size", this.strips), section("Metrics", this.reading, this.plots), section("Population", this.population.body),
      section("Settings", this.settings), element("section", {}, element("h2", {}, "Log"), this.log, element("details", {}, element("summary", {}, "Versions and machine"), this.facts)));
    this.wide = new ResizeObserver(() => this.draw());
    this.wide.observe(this.body);
  }

  close() {
    this.wide.disconnect();
  }

  /** Show what the list says of the run. */
  tell(run) {
    const resume = (run.state === "stopped" || run.state === "failed") && run.job;
    const act = (word, does) => element("button", { type: "button", class: "button", click: ({ target }) => {
      target.disabled = true;
      this.told(ask(`runs/${this.key}/${does}`, {}).catch((error) => {
        target.disabled = false;
        throw error;
      }));
    } }, word);
    const elsewhere = run.state === "running" && !run.ours ? "Another process has it open; stop it where it was started." : "";
    put(this.title, [run.job, run.seed, run.name, run.state, run.stopping], () => [
      element("p", { class: "eyebrow" }, run.job || "run", run.seed !== "" ? ` · seed ${run.seed}` : ""), element("h1", {}, run.name, " ", badge(run))]);
    put(this.bar, run.progress, () => [progress(run)]);
    put(this.acts, [run.ours, run.stopping, run.state, run.process, run.report], () => [
      run.ours && !run.stopping ? act("Stop", "stop") : null,
      run.ours && run.stopping ? later(act("End at once", "stop")) : null,
      resume ? act("Resume", "resume") : null,
      run.report ? element("a", { class: "button", href: `runs/${this.key}/report.html`, target: "_blank", rel: "noopener" }, "Report") : null]);
    put(this.outcome, [run.process, elsewhere, run.why], () => [
      element("p", { class: "note" }, run.process ? `Process ${run.process}. ${elsewhere}` : elsewhere),
      run.why ? element("p", { class: "trouble" }, run.why) : null]);
  }

  /** Ask for what is new; true when a large file was not read to its end. */
  async update() {
    const [metrics, detail] = await Promise.all([ask(`runs/${this.key}/metrics?seen=${this.version}`), ask(`runs/${this.key}`), this.population.update()]);
    if (!metrics.same) {
      this.version = metrics.version;
      this.curves = metrics.curves;
      this.behind = metrics.behind;
      const left = metrics.behind ? `Reading: ${(metrics.behind / 2 ** 20).toFixed(0)} MiB to go. ` : "";
      const skipped = metrics.skipped ? `${metrics.skipped} lines are no rows of metrics. ` : "";
      const unseen = metrics.unseen ? "There are more curves than are shown. " : "";
      this.reading.textContent = left + skipped + unseen + (this.curves.length ? "" : "No metrics yet.");
      this.draw();
    }
    this.detail = detail;
    const { log } = this, below = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.textContent = [detail.command && `$ ${detail.command}`, detail.messages, detail.log].filter(Boolean).join("\n\n") || "Nothing yet.";
    if (below) log.scrollTop = log.scrollHeight;
    this.facts.replaceChildren(table([["folder", detail.folder], ...detail.environment]));
    put(this.verdict, detail.verdict, () => [detail.verdict ? verdict(detail.verdict) : null]);
    this.compare(this.other);
    return Boolean(this.behind);
  }

  /** Draw the curves; with another run beside this one, over the same ranges. */
  draw() {
    const width = Math.floor(this.plots.clientWidth);
    if (!width) return;
    const { strips, plots } = grouped(this.curves), columns = width > 620 ? 2 : 1, each = Math.floor((width - 20 * (columns - 1)) / columns);
    const beside = new Map(this.other ? grouped(this.other.curves).plots : []);
    for (const place of [this.plots, this.strips]) place.classList.toggle("twice", columns === 2);
    this.plots.replaceChildren(...plots.map(([name, curves]) => {
      const range = rangeOf(curves), there = beside.get(name);
      return plot(name, curves, there ? joined(range, rangeOf(there)) : range, each);
    }));
    this.strips.replaceChildren(...strips.flatMap(([name, curves]) => curves.map((curve) => strip(name, curve, each))));
    if (!strips.length) this.strips.replaceChildren(element("p", { class: "note" }, "This run records none."));
    this.population.paint();
  }

  /** Mark the settings that differ from those of another run. */
  compare(other) {
    this.other = other;
    const there = other?.detail && new Map(other.detail.settings), mine = this.detail?.settings ?? [];
    const differing = new Set(there ? mine.filter(([name, value]) => there.get(name) !== value).map(([name]) => name) : []);
    const open = ([name, value]) => (value === "null" || value === "") && !differing.has(name), left = mine.filter(open);
    put(this.settings, [mine, [...differing]], () => [table(mine.filter((row) => !open(row)), differing),
      left.length ? element("details", {}, element("summary", {}, `${left.length} left open`), table(left)) : null]);
  }
}

/** A button that takes the place of another waits, so that a second click meant for that one does nothing. */
function later(button) {
  button.disabled = true;
  setTimeout(() => { button.disabled = false; }, 1500);
  return button;
}

function section(title, ...content) {
  return element("section", {}, element("h2", {}, title), ...content);
}

function verdict({ passed, statement }) {
  const [kind, mark] = passed === null ? ["", "No criterion to meet"] : passed ? ["good", "✓ Criterion met"] : ["bad", "✗ Criterion not met"];
  return element("div", { class: `verdict ${kind}` }, element("p", { class: "mark" }, mark), element("p", { class: "statement" }, statement));
}
