// A population over time: particles in two coordinates, their weights as opacity, and a slider of time.

import { ask, element, shown } from "./elements.js";

const HEIGHT = 300, RADIUS = 3;

export class Population {
  constructor(key) {
    this.path = `runs/${key}/population`;
    this.version = -1;
    this.films = [];
    this.body = element("div", { class: "population" }, element("p", { class: "note" }, "Reading."));
    this.follow = true;
  }

  /** Ask for what is new, and draw it. */
  async update() {
    const found = await ask(`${this.path}?seen=${this.version}`);
    if (found.same) return;
    this.version = found.version;
    this.films = found.films;
    this.build();
    await this.draw();
  }

  build() {
    const usable = this.films.filter((film) => film.frames.length);
    const why = this.films.filter((film) => film.why).map((film) => element("p", { class: "note" }, `${film.name}: ${film.why}.`));
    if (!usable.length) {
      this.body.replaceChildren(element("p", { class: "note" }, "This run has written no arrays of a population."), ...why);
      return;
    }
    const before = this.film?.name;
    this.film = usable.find((film) => film.name === this.wish) ?? usable.findLast((film) => film.grows || film.frames.length > 1) ?? usable[usable.length - 1];
    if (this.film.name !== before) Object.assign(this, { follow: true, axes: null });
    const last = this.film.frames.length - 1;
    this.at = this.follow ? last : Math.min(this.at, last);
    this.canvas = element("canvas", { role: "img", "aria-label": "Particles; the more opaque, the larger their weight" });
    this.note = element("p", { class: "note" });
    this.body.replaceChildren(this.controls(usable), element("div", { class: "cloud" }, this.canvas), this.slider(last), this.note, ...why);
  }

  controls(usable) {
    const d = this.film.coordinates, row = element("p", { class: "controls" });
    if (usable.length > 1) {
      row.append(element("label", {}, "array ", choice(usable.map((film) => [film.name, film.name.replace(/\.safetensors$/, "")]), this.film.name, (name) => {
        this.wish = name;
        this.build();
        this.draw();
      })));
    }
    if (d > 2) {
      const named = [["", "principal components"], ...Array.from({ length: d }, (_, i) => [String(i), `coordinate ${i + 1}`])];
      const [x, y] = this.axes ?? ["", ""];
      const set = (axes) => {
        this.axes = axes;
        this.build();
        this.draw();
      };
      row.append(element("label", {}, "across ", choice(named, String(x), (chosen) => set(chosen === "" ? null : [chosen, y === "" ? String((Number(chosen) + 1) % d) : y]))));
      if (this.axes) row.append(element("label", {}, "up ", choice(named.slice(1), String(y), (chosen) => set([x, chosen]))));
    }
    return row;
  }

  slider(last) {
    const range = element("input", { type: "range", min: 0, max: last, step: 1, value: this.at, disabled: last === 0, "aria-label": "Time", input: () => {
      this.at = Number(range.value);
      this.follow = this.at === last;
      this.draw();
    } });
    range.value = this.at;
    this.time = element("output", {});
    this.range = range;
    const play = element("button", { type: "button", class: "button", disabled: last === 0, click: async () => {
      play.disabled = true;
      await this.play(last);
      play.disabled = false;
    } }, "Play");
    return element("p", { class: "time" }, play, range, this.time);
  }

  /** Go through the frames, from the first if the last is shown. */
  async play(last) {
    const { range } = this;
    if (this.at === last) this.at = -1;
    while (this.at < last && this.range === range && range.isConnected) {
      this.at += 1;
      this.follow = this.at === last;
      range.value = this.at;
      await Promise.all([this.draw(), new Promise((done) => setTimeout(done, 60))]);
    }
  }

  /** Ask for the frame at the slider and draw it; an answer that is no longer wanted is dropped. */
  async draw() {
    if (!this.film?.frames?.length) return;
    const film = encodeURIComponent(this.film.name), axes = this.axes ? `&x=${this.axes[0]}&y=${this.axes[1]}` : "";
    const wanted = (this.wanted = `${this.path}?film=${film}&frame=${this.at}${axes}`);
    this.frame = await ask(wanted);
    if (wanted === this.wanted) this.paint();
  }

  paint() {
    const { frame, film, canvas } = this;
    if (!frame || !canvas?.isConnected) return;
    const width = canvas.parentElement.clientWidth, dense = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: width * dense, height: HEIGHT * dense });
    const pen = canvas.getContext("2d"), most = Math.max(...frame.weights, 1e-300);
    pen.scale(dense, dense);
    pen.fillStyle = getComputedStyle(canvas).color;
    const along = (value, low, high, size) => (high > low ? 10 + ((value - low) / (high - low)) * (size - 20) : size / 2);
    frame.x.forEach((x, i) => {
      pen.globalAlpha = Math.max(0.04, 0.85 * (frame.weights[i] / most));
      pen.beginPath();
      pen.arc(along(x, frame.low[0], frame.high[0], width), HEIGHT - along(frame.y[i], frame.low[1], frame.high[1], HEIGHT), RADIUS, 0, 2 * Math.PI);
      pen.fill();
    });
    this.time.textContent = frame.at;
    const names = this.axes ? this.axes.map((axis) => `coordinate ${Number(axis) + 1}`) : film.coordinates > 2 ? ["component 1", "component 2"] : ["coordinate 1", "coordinate 2"];
    const axis = (i, where) => `${names[i]} ${where} from ${shown(frame.low[i])} to ${shown(frame.high[i])}`;
    const ranges = film.coordinates === 1 ? `${axis(0, "across")}; the height only keeps particles apart.` : `${axis(0, "across")}, ${axis(1, "up")}.`;
    const part = frame.x.length < film.particles ? `${frame.x.length} of ${film.particles} particles. ` : `${film.particles} particles. `;
    const lost = frame.left_out ? `${frame.left_out} are not finite. ` : "";
    const seen = film.grows ? `A run keeps its last state alone: ${film.frames.length} seen while this page looked.` : "";
    this.note.textContent = `${part}${lost}Effective share ${shown(frame.ess)}. Opacity is weight; ${ranges} ${seen}`;
  }
}

function choice(entries, value, changed) {
  const select = element("select", { change: () => changed(select.value) }, ...entries.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value;
  return select;
}
