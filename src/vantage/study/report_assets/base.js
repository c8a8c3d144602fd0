"use strict";
// Elements, numbers, and what the reader has chosen. A string always becomes a text node: nothing here makes markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const STUDY = DATA.study;
const SUMMARY = DATA.summary;
const ARMS = DATA.arms.map((arm, index) => ({ ...arm, index, figures: SUMMARY.arms[index] }));
const BASELINE = ARMS.findIndex((arm) => arm.name === STUDY.baseline);
const HIGHER = STUDY.direction === "higher";

const NB = "\u00a0"; // between a number and its unit
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const $ = (id) => document.getElementById(id);
const put = (id, ...children) => fill($(id).querySelector(".body"), null, children);
const about = (id, text) => { $(id).querySelector(".about").textContent = text; };

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "css") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

// ---- numbers

const minus = (text) => text.replace("-", "−");
const score = (value) => minus(value.toFixed(SUMMARY.decimals));
const signed = (value) => (value > 0 ? "+" : "") + score(value);
const share = (value) => value.toFixed(2);
const range = (interval, format) =>
  interval[1] === null ? "too few seeds" : `${format(interval[1])} – ${format(interval[2])}`;
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return minus(value.toExponential(1).replace("e+", "e"));
  return minus(String(Number(value.toPrecision(3))));
}

function count(value) {
  const size = Math.abs(value);
  const [unit, name] = size >= 1e9 ? [1e9, "B"] : size >= 1e6 ? [1e6, "M"] : size >= 1e3 ? [1e3, "k"] : [1, ""];
  return `${Number((value / unit).toPrecision(3))}${name}`;
}

function duration(seconds) {
  if (seconds < 100) return `${Number(seconds.toPrecision(2))}${NB}s`;
  if (seconds < 6000) return `${Number((seconds / 60).toPrecision(2))}${NB}min`;
  return `${Number((seconds / 3600).toPrecision(2))}${NB}h`;
}

const pValue = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p < 0.01 ? 3 : 2)}`);

// ---- what the reader has chosen; it survives the page's own reload while runs go on

const STORE = `vantage-report:${STUDY.name}:${STUDY.created}`;
const state = {
  hidden: [], axis: "samples", bands: true, seeds: false, profileBands: false, sort: "mean", down: HIGHER,
  family: "baseline", prompt: 0, find: "", reward: "any", seed: "any", disagree: false, paused: false,
};
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(STORE) ?? "{}"));
} catch { /* storage is off: start afresh */ }

const watchers = [];
const watch = (run) => { watchers.push(run); run(); };
function choose(change) {
  Object.assign(state, change);
  try {
    sessionStorage.setItem(STORE, JSON.stringify(state));
  } catch { /* storage is off: the choice lasts as long as the page */ }
  for (const run of watchers) run();
}
const visible = (arm) => !state.hidden.includes(arm.name);
const say = (text) => { $("said").textContent = text; };

// ---- how an arm is drawn: colour, dash and marker, so that no one of them has to do it alone

const DASHES = ["", "9 4", "2 4", "12 4 2 4"];
const MARKERS = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  (r) => `M${-r * 0.9} ${-r * 0.9}H${r * 0.9}V${r * 0.9}H${-r * 0.9}Z`,
  (r) => `M0 ${-r * 1.25}L${r * 1.15} ${r * 0.85}H${-r * 1.15}Z`,
  (r) => `M0 ${-r * 1.35}L${r * 1.35} 0L0 ${r * 1.35}L${-r * 1.35} 0Z`,
  (r) => `M0 ${r * 1.25}L${r * 1.15} ${-r * 0.85}H${-r * 1.15}Z`,
];
// The baseline is drawn in ink; the others take the palette in order and come round with another dash and marker.
const COLOURS = 8;
const look = ARMS.map((arm) => {
  if (arm.index === BASELINE) return { colour: 0, dash: "", marker: MARKERS[0] };
  const place = arm.index < BASELINE ? arm.index : arm.index - 1;
  return {
    colour: 1 + (place % (COLOURS - 1)),
    dash: DASHES[(place + Math.floor(place / (COLOURS - 1))) % DASHES.length],
    marker: MARKERS[(place + 1) % MARKERS.length],
  };
});
const tone = (arm) => `c${look[arm.index].colour}`;

function mark(arm, width = 30) {
  const { dash, marker } = look[arm.index];
  return svg("svg", { class: `mark ${tone(arm)}`, width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true" },
    svg("path", { class: "line", d: `M1 6H${width - 1}`, "stroke-dasharray": dash }),
    svg("path", { class: "dot", d: marker(3.6), transform: `translate(${width / 2} 6)` }));
}
const named = (arm) => [mark(arm), h("span", { class: "arm", dir: "auto" }, arm.name)];

// ---- small controls

function toggle(text, key) {
  const button = h("button", { class: "chip", type: "button", on: { click: () => choose({ [key]: !state[key] }) } }, text);
  watch(() => button.setAttribute("aria-pressed", String(state[key])));
  return button;
}

function oneOf(label, key, options) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", on: { click: () => choose({ [key]: value }) } }, text));
  watch(() => buttons.forEach((button, index) =>
    button.setAttribute("aria-pressed", String(state[key] === options[index][0]))));
  return h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
}

function legend() {
  const buttons = ARMS.map((arm) =>
    h("button", {
      class: "chip key", type: "button", title: `Show or hide ${arm.name}`,
      on: {
        click: () => choose({
          hidden: visible(arm) ? [...state.hidden, arm.name] : state.hidden.filter((name) => name !== arm.name),
        }),
      },
    }, named(arm)));
  const all = h("button", { class: "chip quiet", type: "button", on: { click: () => choose({ hidden: [] }) } }, "Show all");
  watch(() => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(visible(ARMS[index]))));
    all.hidden = !state.hidden.length;
  });
  return h("div", { class: "legend", role: "group", "aria-label": "Methods shown" }, buttons, all);
}

const several = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`);

const empty = (title, text) => h("div", { class: "empty" }, h("strong", {}, title), " ", text);
