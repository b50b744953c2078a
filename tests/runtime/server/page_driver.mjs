// The page's script in Node, on as much of a document as it uses. Reads steps as JSON from standard input; prints what the page shows.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const { page, address, steps } = JSON.parse(readFileSync(0, "utf8"));
const html = readFileSync(page, "utf8");
const elements = {};

class Element {
  constructor(id = "") {
    Object.assign(this, { id, value: "", hidden: false, disabled: false, checked: false, files: [], children: [], style: {}, attributes: {} });
    this.listeners = {};
    this.classList = { add() {}, remove() {} };
    this.text = "";
  }
  get textContent() { return this.text; }
  set textContent(text) { this.text = String(text); this.children = []; }
  append(child) { this.children.push(child); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(kind, listener) { (this.listeners[kind] ||= []).push(listener); }
  focus() { focused = this.id; }
  getContext() { return { putImageData: (image) => { this.pixels = Array.from(image.data); } }; }
  async fire(kind, event = {}) {
    for (const listener of this.listeners[kind] || []) await listener({ preventDefault() {}, ...event });
  }
}
let focused = "";
for (const [, id] of html.matchAll(/ id="([^"]+)"/g)) {
  if (elements[id]) throw new Error("two elements are called " + id);
  elements[id] = new Element(id);
}
elements.ratio.value = "0.5";
elements["heat-kept"].checked = true;
const documentStub = new Element();
documentStub.getElementById = (id) => {
  if (!elements[id]) throw new Error("no element is called " + id);
  return elements[id];
};
documentStub.createElement = () => new Element();
const sent = [];
const scope = {
  document: documentStub, performance, AbortController, TextDecoder, TypeError, Error, console,
  fetch: async (path, options) => {
    sent.push({ path, body: options.body ? JSON.parse(options.body) : null });
    return fetch(address + "/" + path, options);
  },
  FileReader: class { readAsDataURL(file) { this.result = file.url; this.onload(); } },
  ImageData: class { constructor(data, width, height) { Object.assign(this, { data, width, height }); } },
};
vm.createContext(scope);
vm.runInContext(html.match(/<script>([\s\S]*?)<\/script>/)[1], scope);
const settled = async (holds) => {
  for (let round = 0; !holds(); round++) {
    if (round > 3000) throw new Error("the page does not get there");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
};
await settled(() => elements.model.children.length || elements.problem.text);
const shown = [];
for (const step of steps) {
  for (const [id, fields] of Object.entries(step.set || {})) Object.assign(elements[id], fields);
  if (step.stop) settled(() => elements.answer.text.length > 10).then(() => elements.stop.fire("click"));
  if (step.fire) await elements[step.fire].fire(step.kind);
  if (step.paste) await documentStub.fire("paste", { clipboardData: { files: [step.paste] } });
  if (step.drop) await documentStub.fire("drop", { dataTransfer: { files: [step.drop] } });
  if (step.wait) await settled(() => elements.model.children.length);
  const state = {};
  for (const id of Object.keys(elements)) {
    const { text, hidden, disabled, value, children, pixels, attributes } = elements[id];
    state[id] = { text, hidden, disabled, value, pixels, attributes, kept: children.filter((child) => child.className === "kept").length, children: children.length };
  }
  shown.push({ ...state, focused });
}
console.log(JSON.stringify({ shown, sent }));
process.exit(0);
