// Buttons, legend, keys and the line of the crosshair.
"use strict";

const FILLS = { prediction: "1", reference: "2", difference: "3", probability: "4", none: "0" };
const OUTLINES = { prediction: "P", reference: "R" };
const KEYS = [
  ["\u2193 \u2191 or N B", "next, previous case"], ["1 2 3 4 0", "fill: prediction, reference, difference, probability, none"],
  ["space", "while held: prediction and reference change places"], ["P R", "outlines of prediction, of reference"],
  ["S", "scan on, off"], ["W", "contrast of the labelled voxels, of the whole scan"], ["[ ]", "less, more opacity"], ["V", "next view"], ["+ \u2212", "zoom"], ["A", "show all classes"],
  ["C", "crosshair on, off"], ["F", "back to the slices with most differences"], ["H", "this help"],
];

function buildControls() {
  const radio = (parent, entries, key, change) => {
    for (const [value, text, title] of entries) {
      const button = make("button", { type: "button", role: "radio", "data-value": value, text, title });
      button.onclick = () => { state[key] = value; change(); };
      $(parent).append(button);
    }
  };
  radio("fills", Object.entries(FILLS).map(([fill, sign]) => [fill, fill, `Fill: ${fill} (${sign})`]), "fill", refresh);
  radio("views", Object.entries(VIEWS).map(([view, text]) => [view, text, "View (V)"]), "view", changeView);
  for (const [which, sign] of Object.entries(OUTLINES)) {
    const button = make("button", { type: "button", "data-outline": which, title: `Outlines of the ${which} (${sign})`, text: which });
    button.onclick = () => toggleOutline(which);
    $("outlines").append(button);
  }
  $("scan").onclick = toggleScan;
  $("contrast").onclick = toggleContrast;
  $("opacity").oninput = () => setOpacity($("opacity").value / 100);
  $("probability").onchange = () => { state.probability = Number($("probability").value); refresh(); };
  $("channel").onchange = () => changeChannel(Number($("channel").value));
  $("help-button").onclick = () => $("help").showModal();
  for (const [keys, text] of KEYS) $("keys").append(make("tr", {}, make("td", { text: keys }), make("td", { text })));
  document.addEventListener("keydown", press, true);
  document.addEventListener("keyup", event => { if (event.code === "Space" && state.swapped) { state.swapped = false; refresh(); } }, true);
  reflect();
}

/** Draw again after a change of the controls. */
function refresh() {
  reflect();
  if (state.data) show().then(() => { if (state.voxel) tell(state.voxel); }).catch(error => says(error.message));
}

/** Make the buttons show the state. */
function reflect() {
  for (const button of document.querySelectorAll("#fills button")) button.setAttribute("aria-checked", button.dataset.value === state.fill);
  for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-checked", button.dataset.value === state.view);
  for (const button of document.querySelectorAll("[data-outline]")) button.setAttribute("aria-pressed", state.outlines.has(button.dataset.outline));
  $("scan").setAttribute("aria-pressed", state.scan);
  $("contrast").setAttribute("aria-pressed", state.contrast);
  $("class-choice").hidden = state.fill !== "probability";
  for (const fill of ["difference", "probability"]) if ($(`${fill}-key`)) $(`${fill}-key`).hidden = state.fill !== fill;
  for (const text of document.querySelectorAll(".without")) text.hidden = state.fill !== "probability";
  for (const row of document.querySelectorAll("#legend [data-value]")) {
    row.setAttribute("aria-pressed", !state.hidden.has(Number(row.dataset.value)));
  }
}

/** Say what the case is: titles of the panes, its classes with their Dice, its size. */
function describe() {
  const one = line(), { content } = state.data;
  state.classes = classesOf(content);
  const known = { prediction: true, reference: one.reference, difference: one.reference, none: true };
  known.probability = one.panes.some(pane => pane.probabilities);
  for (const button of document.querySelectorAll("#fills button")) button.hidden = !known[button.dataset.value];
  document.querySelector("[data-outline=reference]").hidden = !one.reference;
  if (!known[state.fill]) state.fill = "prediction";
  for (const [index, pane] of state.panes.entries()) {
    const { name, mean } = one.panes[index];
    const letter = one.panes.length > 1 ? `${"AB"[index]}: ` : "";
    pane.title.replaceChildren(make("b", { text: letter + name }), mean === null ? "" : ` Dice ${percent(mean)} %`);
    if (!one.panes[index].probabilities) pane.title.append(make("span", { class: "without", text: ", no probability kept" }));
  }
  describeClasses(one);
  const regions = meaning().regions, names = state.data.content.probabilities;
  $("probability").replaceChildren(...names.map((text, value) => make("option", { value, text })));
  state.probability = Math.min(state.probability, Math.max(names.length - 1, 0));
  $("probability").value = state.probability;
  $("channel").replaceChildren(...content.channels.map(({ name }, value) => make("option", { value, text: name })));
  $("channel-choice").hidden = content.channels.length < 2;
  const shape = one.shape.join(" \u00d7 ");
  const whole = one.whole_shape.join(" \u00d7 ");
  const stored = `${shape}${shape === whole ? " voxels" : ` of ${whole} voxels, around the labels`}${one.exact ? "" : ", as 8 bit"}`;
  $("facts").textContent = `${stored}, ${size(one.bytes)}`;
  reflect();
}

function describeClasses(one) {
  const scores = key => one.panes.map(pane => make("td", { class: "number", text: one.reference ? percent(pane.dice[key]) : "" }));
  const { learned } = meaning();  // regions, which are scored in place of the labels
  const scored = one.reference ? one.panes.map((pane, index) => make("th", { class: "number", text: one.panes.length > 1 ? "AB"[index] : "Dice %" })) : [];
  const present = new Set(state.data.content.values), shown = state.classes.filter(label => present.has(label.value));
  const rows = shown.map(label => {
    const swatch = make("i", { class: `swatch dash${label.dash}` });
    swatch.style.setProperty("--colour", label.colour);
    const row = make("tr", { tabindex: "0", role: "button", "data-value": label.value }, make("td", {}, swatch), make("td", { text: label.name }), ...(learned ? [] : scores(String(label.value))));
    row.onclick = event => choose([label.value], event.shiftKey);
    return row;
  });
  const regions = meaning().regions.map(region => {
    const row = make("tr", { tabindex: "0", role: "button", title: "show it alone" }, make("td"), make("td", { text: region.name }), ...scores(region.labels.join("+")));
    row.onclick = () => choose(region.labels, true);
    return row;
  });
  const classes = make("table", {}, make("tr", {}, make("th"), make("th", { text: learned ? "Labels" : "Classes" }), ...(learned ? [] : scored)), ...rows);
  const key = make("table", { id: "difference-key" }, make("tr", {}, make("th"), make("th", { text: "Difference" })));
  for (const { name, colour } of state.list.differences) {
    const swatch = make("i", { class: "swatch dash0" });
    swatch.style.setProperty("--colour", colour);
    key.append(make("tr", {}, make("td", {}, swatch), make("td", { text: name })));
  }
  const absent = state.classes.length - shown.length;
  const bar = make("i"), part = HEAT.map(([at, ...colour]) => `rgba(${colour}, ${heatOpacity(at) / 255}) ${at / 2.55}%`);
  bar.style.setProperty("--heat", part.join(", "));
  const scale = make("p", { id: "probability-key" }, make("span", { text: "Probability" }), "0", bar, "1");
  const legend = [key, scale, classes];
  if (regions.length) legend.push(make("table", {}, make("tr", {}, make("th"), make("th", { text: "Regions" }), ...(learned ? scored : [])), ...regions));
  if (absent) legend.push(make("p", { class: "soft", text: `${absent} ${absent === 1 ? "class is" : "classes are"} not in this case` }));
  if (!shown.length && !absent) legend.push(make("p", { class: "soft", text: "nothing is labelled" }));
  if (one.panes.length > 1) {
    const lines = one.panes.map((pane, index) => make("p", { class: "soft", text: `${"AB"[index]}: ${pane.name}` }));
    legend.unshift(make("div", {}, ...lines));
  }
  $("legend").replaceChildren(...legend);
}

/** Show or hide labels; `alone` shows them and nothing else, or all again where that is so already. */
function choose(values, alone) {
  const all = state.classes.map(label => label.value), others = all.filter(value => !values.includes(value));
  if (alone) {
    const isAlone = others.every(value => state.hidden.has(value)) && values.every(value => !state.hidden.has(value));
    state.hidden = new Set(isAlone ? [] : others);
  } else {
    for (const value of values) if (!state.hidden.delete(value)) state.hidden.add(value);
  }
  refresh();
}

/** Tell what is at a voxel of what is stored: its place in mm and in the file, its value, its labels. */
function tell(voxel) {
  const { data } = state;
  if (!data) return;
  const { scan, content } = data, [width, height] = scan.dims;
  state.voxel = voxel;
  const place = voxel[0] + width * (voxel[1] + height * voxel[2]);
  const name = value => value ? state.classes.find(label => label.value === value)?.name ?? String(value) : "background";
  const value = scan.voxels[place] * scan.slope + scan.intercept;
  const index = content.file.map(({ axis, sign, start }) => start + sign * voxel[axis]);
  const parts = [`voxel ${index.join(", ")}`, `value ${Number(value.toPrecision(4))}`];
  data.panes.forEach((pane, number) => {
    const letter = data.panes.length > 1 ? ` ${"AB"[number]}` : "";
    parts.push(`prediction${letter}: ${name(pane.prediction.voxels[place])}`);
    const chosen = pane.probabilities?.[state.probability]?.volume;
    if (chosen && state.fill === "probability") parts.push(`probability${letter} ${(chosen.voxels[place] / 255).toFixed(2)}`);
  });
  if (data.reference) parts.push(`reference: ${name(data.reference.voxels[place])}`);
  $("position").replaceChildren(...parts.map(text => make("span", { text })));
}

function toggleOutline(which) {
  if (!state.outlines.delete(which)) state.outlines.add(which);
  refresh();
}

function toggleScan() {
  state.scan = !state.scan;
  for (const pane of state.panes) pane.setScanVisible(state.scan);
  reflect();
}

/** The values of a channel that are shown black and white. */
function windowOf(channel) {
  return state.contrast && channel.label_window ? channel.label_window : channel.window;
}

function toggleContrast() {
  state.contrast = !state.contrast;
  const channel = state.data?.content.channels[state.data.channel];
  if (channel) for (const pane of state.panes) pane.setWindow(windowOf(channel));
  reflect();
}

function setOpacity(opacity) {
  state.opacity = Math.min(1, Math.max(0, opacity));
  $("opacity").value = 100 * state.opacity;
  if (state.data) for (const pane of state.panes) pane.setOpacity(state.opacity);
}

function changeView() {
  for (const pane of state.panes) pane.setView(state.view);
  reflect();
}

function moveTo(voxel) {
  for (const pane of state.panes) pane.moveTo(voxel);
}

/** Show another channel of the scan, where the crosshair stands. */
async function changeChannel(index) {
  const { data } = state, { voxel } = state;
  const scan = await readVolume(data.content.channels[index].data);
  if (data !== state.data || index !== Number($("channel").value)) return;
  data.scan = scan;
  data.channel = index;
  for (const [number, pane] of state.panes.entries()) await pane.setScan(scan, windowOf(data.content.channels[index]), data.panes[number].prediction);
  if (data !== state.data) return;
  await show();
  moveTo(voxel);
  if (!state.scan) for (const pane of state.panes) pane.setScanVisible(false);
}

function step(change) {
  const place = state.order.indexOf(state.current) + change;
  if (place >= 0 && place < state.order.length) open(state.order[place]);
}

function toggleCrosshair() {
  state.crosshair = !state.crosshair;
  for (const pane of state.panes) pane.setCrosshair(state.crosshair);
}

const PRESSED = {
  ArrowDown: () => step(1), n: () => step(1), ArrowUp: () => step(-1), b: () => step(-1),
  "[": () => setOpacity(state.opacity - 0.1), "]": () => setOpacity(state.opacity + 0.1),
  s: toggleScan, w: toggleContrast, c: toggleCrosshair, f: () => state.data && moveTo(state.data.content.focus),
  a: () => { state.hidden.clear(); refresh(); },
  v: () => { const views = Object.keys(VIEWS); state.view = views[(views.indexOf(state.view) + 1) % views.length]; changeView(); },
  "+": () => state.panes.forEach(pane => pane.zoom(1.25)), "=": () => state.panes.forEach(pane => pane.zoom(1.25)),
  "-": () => state.panes.forEach(pane => pane.zoom(0.8)), h: () => $("help").showModal(), "?": () => $("help").showModal(),
};
for (const [which, sign] of Object.entries(OUTLINES)) PRESSED[sign.toLowerCase()] = () => toggleOutline(which);
for (const [fill, sign] of Object.entries(FILLS)) {
  PRESSED[sign] = () => {
    const button = document.querySelector(`#fills [data-value=${fill}]`);
    if (!button.hidden) { state.fill = fill; refresh(); }
  };
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || event.target.matches("select")) return;
  if (event.key === "Enter" && event.target.matches("tr")) { event.target.click(); return; }
  if (event.code === "Space") {
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat && state.data?.reference) { state.swapped = true; refresh(); }
    return;
  }
  const action = PRESSED[event.key] ?? PRESSED[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();  // NiiVue has keys of its own
  action();
}
