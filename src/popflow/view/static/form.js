// The form that starts a run, made from the declaration of its task.

import { ask, element } from "./elements.js";

export class Form {
  constructor(forms, told) {
    this.jobs = forms.jobs;
    this.told = told;
    this.fields = element("div", { class: "fields" });
    this.summary = element("p", { class: "lead" });
    this.examples = element("p", { class: "examples" });
    this.error = element("p", { class: "trouble", role: "alert", hidden: true });
    this.job = element("select", { id: "job", change: () => this.build() }, this.group("On your input", (name) => !name.startsWith("demo ")), this.group("Demos", (name) => name.startsWith("demo ")));
    this.job.value = "demo fkc";
    this.device = element("select", { id: "device" }, ...["auto", "cpu", "cuda"].map((name) => element("option", {}, name)));
    this.folder = element("input", { id: "folder", type: "text", placeholder: "the first free name", autocomplete: "off", spellcheck: "false" });
    this.body = element("form", { class: "new", novalidate: true, submit: (event) => this.submit(event) },
      element("h1", {}, "New run"),
      row("job", "what to run", this.job, ""), this.summary, this.examples, this.error, this.fields,
      element("div", { class: "fields" }, row("device", "--device", this.device, "Where to compute; auto uses a GPU if there is one."),
        row("folder", "folder", this.folder, "Name of the run folder; a folder of a run with the same settings resumes it.")),
      element("p", { class: "acts" }, element("button", { class: "button strong", type: "submit" }, "Start")),
      ...forms.broken.map((why) => element("p", { class: "note" }, `Could not be loaded: ${why}`)));
    this.build();
  }

  group(label, wanted) {
    return element("optgroup", { label }, ...this.jobs.filter(({ name }) => wanted(name)).map(({ name }) => element("option", { value: name }, name)));
  }

  build() {
    const job = this.jobs.find(({ name }) => name === this.job.value);
    this.error.hidden = true;
    this.summary.textContent = job.summary;
    this.examples.replaceChildren(...job.examples.map((line) => element("code", {}, line)));
    this.inputs = job.fields.map((field) => [field, input(field)]);
    const first = this.inputs.filter(([field]) => field.first), others = this.inputs.filter(([field]) => !field.first);
    const rows = (some) => some.map(([field, control]) => row(`field-${field.name}`, field.label, control, help(field)));
    this.fields.replaceChildren(...rows(first));
    if (others.length) this.fields.append(element("details", { class: "others" }, element("summary", {}, `${others.length} more settings`), element("div", { class: "fields" }, ...rows(others))));
  }

  values() {
    return Object.fromEntries(this.inputs.map(([field, control]) => [field.name, given(field, control.value)]).filter(([, value]) => value !== null));
  }

  async submit(event) {
    event.preventDefault();
    const button = this.body.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const started = await ask("start", { job: this.job.value, values: this.values(), device: this.device.value, folder: this.folder.value.trim() });
      this.told(started.key);
    } catch (error) {
      this.error.textContent = error.message;
      this.error.hidden = false;
      this.error.scrollIntoView({ block: "center" });
    } finally {
      button.disabled = false;
    }
  }
}

function input(field) {
  const id = `field-${field.name}`, text = String(field.default ?? "");
  if (field.kind === "bool" || field.choices.length && !field.many) {
    const known = field.kind === "bool" ? [["true", "yes"], ["false", "no"]] : field.choices.map((one) => [one, one]);
    const usual = field.kind === "bool" ? (field.default === true ? "yes" : field.default === false ? "no" : text) : text;
    return element("select", { id }, element("option", { value: "" }, field.required ? "choose" : `default${usual ? `: ${usual}` : ""}`), ...known.map(([value, word]) => element("option", { value }, word)));
  }
  const shared = { id, placeholder: field.required ? field.placeholder || "needed" : text || field.placeholder, autocomplete: "off", spellcheck: "false" };
  if (field.many) return element("textarea", { ...shared, rows: 2 });
  return element("input", { ...shared, type: "text", inputmode: field.kind === "int" || field.kind === "float" ? "text" : null });
}

/** The value of a field as its kind; null keeps the default, and text that is no number is left for the server to refuse. */
function given(field, text) {
  const one = (word) => {
    const number = Number(word);
    return (field.kind === "int" || field.kind === "float") && word !== "" && Number.isFinite(number) ? number : word;
  };
  if (text.trim() === "") return null;
  if (field.kind === "bool") return text === "true";
  return field.many ? text.split("\n").map((line) => line.trim()).filter(Boolean).map(one) : one(text.trim());
}

function help(field) {
  const notes = [field.range && `Range: ${field.range}.`, field.many && "One in each line.", field.many && field.choices.length && `Each of: ${field.choices.join(", ")}.`];
  return [field.help, ...notes.filter(Boolean)].join(" ");
}

function row(id, label, control, text) {
  return element("div", { class: "field" }, element("label", { for: id }, label), control, text ? element("p", { class: "note" }, text) : null);
}
