// As much of a document as palora/results/pages/page.js asks for: elements, a few selectors, forms and events.
"use strict";

const SELECTOR = /^(\w*)(?:\.([\w-]+))?(?:\[([\w-]+)(?:=([\w-]+))?\])?$/;

class Text {
  constructor(text) {
    this.textContent = text;
  }
}

class Element {
  constructor(tag, attributes = {}) {
    Object.assign(this, { tag, attributes, childNodes: [], parentNode: null, listeners: {}, style: {} });
    this.style.setProperty = (name, value) => (this.style[name] = value);
  }

  // --- what it holds
  get children() { return this.childNodes.filter((node) => node instanceof Element); }
  get childElementCount() { return this.children.length; }
  get firstChild() { return this.childNodes[0] ?? null; }
  get textContent() { return this.childNodes.map((node) => node.textContent).join(""); }
  set textContent(text) { this.replaceChildren(String(text)); }
  append(...nodes) { this.place(this.childNodes.length, nodes); }
  after(...nodes) { this.parentNode.place(this.parentNode.childNodes.indexOf(this) + 1, nodes); }
  replaceChildren(...nodes) { this.childNodes = []; this.append(...nodes); }
  place(at, nodes) {
    for (const node of nodes.map((given) => (given instanceof Element || given instanceof Text ? given : new Text(given)))) {
      const siblings = node.parentNode?.childNodes ?? [];
      const before = siblings.indexOf(node);
      if (before >= 0) siblings.splice(before, 1);
      if (siblings === this.childNodes && before < at) at -= 1; // it has left a place before that one
      this.childNodes.splice(at++, 0, node);
      node.parentNode = this;
    }
  }

  // --- what it is
  getAttribute(name) { return this.attributes[name] ?? null; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  removeAttribute(name) { delete this.attributes[name]; }
  get className() { return this.attributes.class ?? ""; }
  set className(name) { this.attributes.class = name; }
  get hidden() { return "hidden" in this.attributes; }
  set hidden(is) { is ? this.setAttribute("hidden", "") : this.removeAttribute("hidden"); }
  get dataset() {
    const data = Object.entries(this.attributes).filter(([name]) => name.startsWith("data-"));
    return Object.fromEntries(data.map(([name, value]) => [name.slice(5), value]));
  }

  // --- where it is
  matches(selector) {
    const [, tag, name, attribute, value] = selector.match(SELECTOR);
    return (!tag || tag === this.tag) && (!name || this.className.split(" ").includes(name)) &&
      (!attribute || (attribute in this.attributes && (!value || this.attributes[attribute] === value)));
  }
  closest(selector) { return this.matches(selector) ? this : (this.parentNode?.closest(selector) ?? null); }
  querySelectorAll(selector) {
    return this.children.flatMap((child) => [...(child.matches(selector) ? [child] : []), ...child.querySelectorAll(selector)]);
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }

  // --- tables and forms
  get tHead() { return this.querySelector("thead"); }
  get tBodies() { return this.children.filter((child) => child.tag === "tbody"); }
  get rows() { return this.querySelectorAll("tr"); }
  get cells() { return this.children.filter((child) => ["th", "td"].includes(child.tag)); }
  get elements() {
    const fields = [...this.querySelectorAll("input"), ...this.querySelectorAll("select")];
    return Object.fromEntries(fields.map((field) => [field.getAttribute("name"), field]));
  }
  get value() {
    const first = this.querySelector("option");
    return this.written ?? this.attributes.value ?? (first ? first.value : this.tag === "option" ? this.textContent : "");
  }
  set value(value) { this.written = value; }

  // --- what happens
  addEventListener(kind, heard) { (this.listeners[kind] ??= []).push(heard); }
  dispatchEvent(event) {
    for (const heard of this.listeners[event.type] ?? []) heard(event);
    this.parentNode?.dispatchEvent(event);
  }
  click() { this.dispatchEvent(new Event("click")); }
}

class Event {
  constructor(type) {
    this.type = type;
  }
}

function built([tag, attributes, inner]) {
  const element = new Element(tag, attributes);
  element.append(...inner.map((child) => (typeof child === "string" ? child : built(child))));
  return element;
}

function load(tree) {
  globalThis.document = built(tree);
  document.createElement = (tag) => new Element(tag);
  document.getElementById = (id) => document.querySelectorAll("[id]").find((element) => element.attributes.id === id);
}
