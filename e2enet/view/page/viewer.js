// The page's state: the list of cases, and the layers of the one that is shown. list.js and the cases' scripts call `e2enet.list`, `.case` and
// `.probabilities`. Names come from outside: they are only ever set as text.
"use strict";

const $ = id => document.getElementById(id);
const state = {
  list: null, order: [], current: -1, loading: 0, data: null, panes: [], hidden: new Set(),
  fill: "prediction", outlines: new Set(["reference"]), opacity: 0.5, scan: true, contrast: false,
  crosshair: true, view: "all", probability: 0, swapped: false,
};
const waiting = new Map();

const e2enet = {
  list(content) { start(content); },
  case(number, content) { settle(`${number}.js`, content); },
  probabilities(number, index, content) { settle(`${number}-${index}.js`, content); },
};

/** Run a script from the folder of the cases; the promise gives what it hands over. Files cannot be fetched from disk. */
function load(file) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(file, resolve);
    script.onload = () => script.remove();
    script.onerror = () => { script.remove(); reject(new Error(`${script.getAttribute("src")} is missing beside index.html`)); };
    script.src = `${state.list.folder}/${file}`;
    document.head.append(script);
  });
}

function settle(file, content) {
  waiting.get(file)?.(content);
  waiting.delete(file);
}

/** An element with a text, attributes and children. */
function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = share => share === null || share === undefined ? "\u2013" : (100 * share).toFixed(1);
const size = bytes => bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const line = () => state.list.cases[state.current];
const meaning = () => state.list.meanings[line().meaning];
const says = text => { $("message").textContent = text; $("message").hidden = !text; };

function start(content) {
  state.list = content;
  document.title = content.title;
  $("title").textContent = content.title;
  const bytes = content.cases.reduce((sum, one) => sum + one.bytes, 0);
  $("summary").textContent = `${content.cases.length} case${content.cases.length === 1 ? "" : "s"}, ${size(bytes)}`;
  const names = [...new Set(content.cases.flatMap(one => one.panes.map(pane => pane.name)))];
  const most = Math.max(...content.cases.map(one => one.panes.length));
  const scored = content.cases.some(one => one.reference);
  const orders = scored ? [["dice", "Dice, worst first"], ["best", "Dice, best first"]] : [];
  if (scored && most > 1) orders.push(["gain", `gain of ${most === 2 && names.length === 2 ? names[1] : "the second"}`]);
  for (const [value, text] of [...orders, ["name", "name"]]) $("order").append(make("option", { value, text }));
  $("order").onchange = () => { sortCases(); drawList(); };
  buildControls();
  sortCases();
  drawList();
  window.addEventListener("hashchange", openAsked);
  openAsked();
}

/** Open the case that the address names (#case=3, as in the report's links), else the first of the list. */
function openAsked() {
  const number = Number(new URLSearchParams(location.hash.slice(1)).get("case") ?? NaN);
  open(state.list.cases[number] ? number : state.order[0]);
}

function sortCases() {
  const { cases } = state.list, by = $("order").value;
  const mean = one => Math.min(...one.panes.map(pane => pane.mean ?? Infinity));
  const gain = one => one.panes.length > 1 ? one.panes[1].mean - one.panes[0].mean : Infinity;
  const value = { dice: mean, best: one => -mean(one), gain, name: () => 0 }[by];
  const last = one => Number.isFinite(value(one)) ? value(one) : Infinity;
  state.order = cases.map((_, number) => number).sort((a, b) => {
    const [x, y] = [last(cases[a]), last(cases[b])];
    return x === y ? cases[a].case.localeCompare(cases[b].case, "en", { numeric: true }) || a - b : x < y ? -1 : 1;
  });
}

function drawList() {
  $("cases").replaceChildren(...state.order.map(number => {
    const one = state.list.cases[number];
    const scores = one.panes.filter(pane => pane.mean !== null).map(pane => {
      const bar = make("i");
      bar.style.setProperty("--dice", pane.mean);
      return make("span", { class: "score", title: `Dice of ${pane.name}: mean over classes, percent` }, bar, percent(pane.mean));
    });
    const button = make("button", { type: "button", "data-number": number }, make("span", { class: "name", text: one.case }));
    if (scores.length) button.append(make("span", { class: "scores" }, ...scores));
    if (one.note) button.append(make("span", { class: "note", text: one.note }));
    button.onclick = () => open(number);
    return make("li", {}, button);
  }));
  mark();
}

function mark() {
  for (const button of $("cases").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.number) === state.current;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

/** Load and show a case; the last click wins where several are under way. */
async function open(number) {
  if (number === state.current && state.data) return;
  const turn = ++state.loading;
  state.current = number;
  state.data = state.voxel = null;
  document.body.dataset.state = "loading";
  mark();
  says("loading \u2026");
  try {
    const content = await load(`${number}.js`);
    const volumes = await Promise.all([
      readVolume(content.channels[0].data),
      content.reference === null ? null : readVolume(content.reference),
      ...content.panes.flatMap(pane => [readVolume(pane.prediction), pane.difference && readVolume(pane.difference)]),
    ]);
    if (turn !== state.loading) return;
    const panes = content.panes.map((_, index) => ({
      prediction: volumes[2 + 2 * index], difference: volumes[3 + 2 * index], probabilities: null,
    }));
    await preparePanes(panes.length, turn);
    if (turn !== state.loading) return;
    for (const [index, pane] of state.panes.entries()) {
      await pane.setScan(volumes[0], windowOf(content.channels[0]), panes[index].prediction);
    }
    if (turn !== state.loading) return;
    state.data = { content, channel: 0, scan: volumes[0], reference: volumes[1], panes };
    history.replaceState(null, "", `#case=${number}`);
    says("");
    describe();
    await show();
    moveTo(content.focus);
    if (!state.scan) for (const pane of state.panes) pane.setScanVisible(false);
    document.body.dataset.state = "ready";
  } catch (error) {
    if (turn !== state.loading) return;
    document.body.dataset.state = "failed";
    says(`${line().case} cannot be shown: ${error.message}`);
  }
}

/** Have as many panes as predictions; two move together. What a later click does not need is dropped. */
async function preparePanes(count, turn) {
  if (state.panes.length === count) return;
  for (const pane of state.panes) pane.element.remove();
  state.panes = [];
  for (let index = 0; index < count; index++) {
    const element = make("div");
    $("panes").append(element);
    const pane = new Pane(element, voxel => index === 0 || pane.planesCanvas.matches(":focus") ? tell(voxel) : null);
    await pane.start();
    if (turn !== state.loading) { element.remove(); return; }
    pane.setView(state.view);
    pane.setCrosshair(state.crosshair);
    state.panes.push(pane);
  }
  for (const part of ["planes", "solid"]) {
    for (const pane of state.panes) {
      const others = state.panes.filter(other => other !== pane).map(other => other[part]);
      if (others.length) pane[part].broadcastTo(others, { "2d": true, "3d": true, zoomPan: true, cal_min: true, cal_max: true });
    }
  }
}

/** The classes of this case with their styles; values that nothing names are grey. */
function classesOf(content) {
  const named = meaning().labels, known = new Set(named.map(label => label.value));
  const others = content.values.filter(value => !known.has(value));
  return [...named, ...others.map(value => ({ value, name: `label ${value}`, colour: "#B8BFC9", dash: 0 }))];
}

const packed = (colour, alpha) => {
  const [red, green, blue] = [1, 3, 5].map(place => parseInt(colour.slice(place, place + 2), 16));
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
};

function table(entries) {
  const colours = new Uint32Array(1 << 15);
  for (const { value, colour } of entries) colours[value] = packed(colour, 255);
  return colours;
}

/** Colours of a probability from 0 to 255: blue, yellow, white; the less, the more transparent. */
const HEAT = [[0, 32, 60, 140], [90, 70, 130, 190], [170, 240, 190, 60], [255, 255, 250, 220]];
const heatOpacity = value => value < 3 ? 0 : Math.min(255, 90 + value);

function heat() {
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const next = Math.max(1, HEAT.findIndex(stop => stop[0] >= value)), [a, b] = [HEAT[next - 1], HEAT[next]];
    const part = (value - a[0]) / (b[0] - a[0]), mix = [1, 2, 3].map(place => Math.round(a[place] + part * (b[place] - a[place])));
    return heatOpacity(value) && ((heatOpacity(value) << 24) | (mix[2] << 16) | (mix[1] << 8) | mix[0]) >>> 0;
  });
}

/** Draw all layers of all panes as the controls say. */
async function show() {
  const { data } = state;
  const shown = state.classes.filter(label => !state.hidden.has(label.value)), colours = table(shown);
  const byValue = new Map(shown.map(label => [label.value, label]));
  const fill = state.swapped ? { prediction: "reference", reference: "prediction" }[state.fill] ?? state.fill : state.fill;
  for (const [index, pane] of state.panes.entries()) {
    const own = data.panes[index];
    const labels = { prediction: own.prediction, reference: data.reference };
    let [volume, lookup] = [labels[fill] ?? null, colours];
    if (fill === "difference") [volume, lookup] = [own.difference, table(state.list.differences)];
    if (fill === "probability") {
      [volume, lookup] = [await probability(index), heat()];
      if (data !== state.data) return;
    }
    const solid = fill === "difference" || labels[fill] ? [volume, lookup] : [own.prediction, colours];
    pane.setFill(volume, lookup, state.opacity, ...solid);
    const outlines = [];
    const style = (value, more) => byValue.has(value) ? { ...byValue.get(value), ...more } : null;
    if (state.outlines.has("prediction")) outlines.push([own.prediction, value => style(value, { width: 1.6, rim: false })]);
    // White tells the reference from what is filled; in its own colours it would hide in them.
    const white = { colour: "#FFFFFF", width: 1.3, rim: true };
    if (state.outlines.has("reference") && data.reference) {
      outlines.push([data.reference, value => style(value, byValue.get(value)?.ignored ? white : { ...white, dash: 0 })]);
    }
    pane.setOutlines(outlines);
  }
  document.body.dataset.fill = fill;
}

async function probability(index) {
  const own = state.data.panes[index];
  if (!line().panes[index].probabilities) return null;
  own.probabilities ??= await load(`${state.current}-${index}.js`);
  const chosen = own.probabilities[Math.min(state.probability, own.probabilities.length - 1)];
  return chosen.volume ??= await readVolume(chosen.data);
}
