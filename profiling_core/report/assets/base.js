"use strict";
// What all figures use: data, elements, numbers, controls.

const data = JSON.parse(document.getElementById("data").textContent);

// Children may be nodes or strings; strings become text, never HTML.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Four significant digits, as in the tables.
function digits(value) {
  if (value === null || value === undefined) return "not measured";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function finite(values) {
  return values.flat(Infinity).filter((value) => value !== null);
}

// Buttons of which one is pressed.
function choice(label, names, change) {
  const buttons = names.map((name, index) => {
    const button = element("button", { type: "button", "aria-pressed": String(index === 0) }, name);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      change(index);
    });
    return button;
  });
  return element("div", { class: "switch", role: "group", "aria-label": label }, ...buttons);
}

function slider(label, count, start, say, change) {
  const input = element("input", { type: "range", min: 0, max: count - 1, step: 1, value: start });
  const shown = element("output", {}, say(start));
  const set = (value) => {
    input.value = value;
    shown.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    set(input.value);
    change(Number(input.value));
  });
  set(start);
  return { node: element("label", { class: "field" }, label, input, shown), input, set };
}

function selection(label, names, start, change) {
  const options = names.map((name, index) =>
    element("option", { value: index, selected: index === start }, name.length > 60 ? `${name.slice(0, 58)}…` : name));
  const select = element("select", {}, ...options);
  select.addEventListener("change", () => change(Number(select.value)));
  return element("label", { class: "field" }, label, select);
}

function checkbox(label, start, change) {
  const input = element("input", { type: "checkbox", checked: start });
  input.addEventListener("change", () => change(input.checked));
  return element("label", { class: "field" }, input, label);
}

function startTheme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches);
  const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  button.hidden = false;
  show();
}
