// One photo at a time is drawn: the photo, over it the classes of its pixels, both moved by one view that all panes
// share. The page says with decode(number) where the pictures of a photo are had, and calls begin() once there is one.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const score = (value) => (value === null ? "–" : value.toFixed(3));
const nameOf = (k) => data.classes[k]?.name ?? "not labelled";
const NO_CLASS = 255;
const MOST_ZOOM = 20;
const OVERLAY = 0.6; // opacity at the beginning
const narrow = matchMedia("(max-width: 52rem)");
const byTouch = matchMedia("(pointer: coarse)");
const stage = byId("stage");

const state = {
  number: null, // of the photo shown
  wanted: null, // of the photo asked for, which may still be decoded
  pictures: null,
  view: "beside",
  opacity: OVERLAY,
  overlay: OVERLAY, // opacity that the key 2 goes back to
  swipe: null, // share of a pane that is left to the photo alone
  lit: new Set(), // classes lit up, or none
  hidden: new Set(),
  only: null, // class whose photos alone are listed
  zoom: 1, // 1 shows the whole photo
  centre: [0.5, 0.5], // of the view, as shares of the photo, as all places below
  spot: null, // place that is read
  pointer: null, // where the mouse rests: a pane and client coordinates
};

// ---- Pictures: those of the photo shown and of its neighbours are kept decoded.

const decoded = new Map();

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  return bytes;
}

function picturesOf(number) {
  if (!decoded.has(number)) decoded.set(number, decode(number));
  return decoded.get(number);
}

function keepNeighbours(number) {
  const place = sequence.indexOf(number);
  const kept = new Set(sequence.slice(Math.max(0, place - 1), place + 2));
  for (const [other, pictures] of decoded) {
    if (kept.has(other) || other === state.number) continue;
    decoded.delete(other);
    pictures.then(({ picture }) => picture.close(), () => {});
  }
  for (const other of kept) picturesOf(other).catch(() => {});
}

// ---- Layers: what lies over the photo, a canvas of the map's size for each pane.

const colour = (red, green, blue, alpha = 255) => new Uint32Array(new Uint8Array([red, green, blue, alpha]).buffer)[0];
const CLEAR = 0, WHITE = colour(255, 255, 255), SHADE = colour(16, 17, 20), GREY = colour(128, 128, 128, 200), DIM = colour(16, 17, 20, 150);
const MISSED = colour(255, 84, 46), EXCESS = colour(64, 156, 255);
const colours = Uint32Array.from(data.classes, ({ colour: code }) => {
  const number = parseInt(code.slice(1), 16);
  return colour(number >> 16, (number >> 8) & 255, number & 255);
});

function layer({ width, height }, pixelAt) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < pixels.length; k += 1) pixels[k] = pixelAt(k);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Whether a pane shows any pixel of a class of the photo: the truth and the prediction have their own, errors both.
const holds = { truth: (entry) => entry[3] > 0, prediction: (entry) => entry[1] > 0, errors: () => true };

// Classes lit up that a pane holds, or with false those of the photo that it lacks. Where there are none, as in a
// photo without the class lit up in another one, nothing is darkened.
function litIn(kind, held = true) {
  const here = (data.photos[state.number]?.classes ?? []).filter((entry) => state.lit.has(entry[0]) && holds[kind](entry) === held);
  return new Set(here.map(([k]) => k));
}

function classLayer(kind) {
  const map = state.pictures[kind];
  const lit = litIn(kind);
  const table = new Uint32Array(256);
  for (let k = 0; k < colours.length; k += 1) {
    const own = data.classes[k].untinted && state.opacity < 1 ? CLEAR : colours[k];
    table[k] = state.hidden.has(k) ? CLEAR : lit.size && !lit.has(k) ? SHADE : own;
  }
  if (!lit.size) return layer(map, (k) => table[map.ids[k]]);
  table[NO_CLASS] = SHADE;
  // A white line tells grey classes from a grey photo.
  const { ids, width } = map;
  const isLit = Uint8Array.from(table, (_, k) => Number(lit.has(k)));
  const isOut = (k) => isLit[ids[k]] === 0; // beyond the first and the last pixel nothing is
  const isEdge = (k) => isOut(k - 1) || isOut(k + 1) || isOut(k - width) || isOut(k + width);
  return layer(map, (k) => (isLit[ids[k]] && isEdge(k) ? WHITE : table[ids[k]]));
}

// Wrong pixels; of classes lit up, those missed and those seen where they are not.
function errorLayer({ ids: truth, width, height }, { ids: prediction }) {
  const lit = litIn("errors");
  return layer({ width, height }, (k) => {
    const [label, found] = [truth[k], prediction[k]];
    if (label === NO_CLASS) return GREY;
    if (label === found || state.hidden.has(label)) return DIM;
    if (!lit.size || lit.has(label)) return MISSED;
    return lit.has(found) ? EXCESS : DIM;
  });
}

function layerOf(kind) {
  const { pictures } = state;
  const name = state.opacity < 1 ? kind : `map of ${kind}`; // a map has a colour for what leaves a photo untinted
  pictures.layers[name] ??= kind === "errors" ? errorLayer(pictures.truth, pictures.prediction) : classLayer(kind);
  return pictures.layers[name];
}

function repaint() {
  if (state.pictures) state.pictures.layers = {};
  redraw();
}

// ---- Drawing

const panes = all(".pane").map((figure) => ({
  figure,
  kind: figure.dataset.layer,
  frame: figure.querySelector(".frame"),
  canvas: figure.querySelector("canvas"),
  context: figure.querySelector("canvas").getContext("2d", { alpha: false }),
  divider: figure.querySelector(".divider"),
  ring: figure.querySelector(".ring"),
  tag: figure.querySelector(".tag"),
  note: figure.querySelector(".note"),
}));
const shownPanes = () => panes.filter(({ figure }) => !figure.hidden);
let size = [1, 1]; // of a pane, in CSS pixels; all that are shown have the same
let sharpness = 1; // pixels of the canvas to a CSS pixel
let paper = ""; // what lies beside a photo
let due = null; // what the next frame brings: only the place that is read, or the canvases with it

function redraw(task = draw) {
  const isWaiting = due !== null;
  if (due !== draw) due = task;
  if (isWaiting) return;
  requestAnimationFrame(() => {
    const doIt = due;
    due = null;
    if (state.pictures) doIt();
  });
}

function measure() {
  const box = shownPanes()[0].frame.getBoundingClientRect();
  size = [Math.max(1, box.width), Math.max(1, box.height)];
  sharpness = Math.min(2, devicePixelRatio || 1);
  paper = getComputedStyle(stage).getPropertyValue("--tile");
  for (const { canvas } of panes) {
    const [width, height] = size.map((length) => Math.round(length * sharpness));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }
  look();
}

// Where the photo lies in a pane, in CSS pixels.
function photoBox() {
  const { shape } = data.photos[state.number];
  const width = Math.min(size[0], size[1] * shape) * state.zoom;
  const height = width / shape;
  return { left: size[0] / 2 - state.centre[0] * width, top: size[1] / 2 - state.centre[1] * height, width, height };
}

function draw() {
  const box = photoBox();
  for (const { kind, context, canvas } of shownPanes()) {
    const place = [box.left, box.top, box.width, box.height].map((length) => length * sharpness);
    context.fillStyle = paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = true;
    context.drawImage(state.pictures.picture, ...place);
    context.save();
    if (state.swipe !== null) {
      context.beginPath();
      context.rect(state.swipe * canvas.width, 0, canvas.width, canvas.height);
      context.clip();
    }
    const over = layerOf(kind);
    // Errors are to be seen beside the photo, so that they fade later than the classes do.
    context.globalAlpha = kind === "errors" ? 1 - (1 - state.opacity) ** 2 : state.opacity;
    context.imageSmoothingEnabled = place[2] < over.width; // enlarged, a pixel stays a square
    if (state.opacity > 0) context.drawImage(over, ...place);
    context.restore();
  }
  showSpot();
}

// ---- Reading: the class under the pointer, a finger or the arrow keys.

const idAt = ({ width, height, ids }, [x, y]) =>
  ids[Math.min(height - 1, Math.floor(y * height)) * width + Math.min(width - 1, Math.floor(x * width))];

function toPhoto([x, y]) {
  const { left, top, width, height } = photoBox();
  return [(x - left) / width, (y - top) / height];
}

function read(spot) {
  const inside = spot && spot.every((value) => value >= 0 && value < 1);
  state.spot = inside ? spot : null;
  redraw(showSpot);
}

function numbersOf(id) {
  const [, share, certainty] = data.photos[state.number].classes.find(([k]) => k === id) ?? [id, 0, null];
  return certainty === null ? percent(share) : `${percent(share)}, score ${certainty.toFixed(2)}`;
}

function tagText(kind, found, label) {
  if (kind === "prediction") return [nameOf(found), numbersOf(found)];
  if (kind === "truth") return [nameOf(label), ""];
  if (label === NO_CLASS) return ["not labelled", ""];
  return found === label ? ["right", ""] : ["wrong", `${nameOf(label)} taken for ${nameOf(found)}`];
}

// Text that stays the same is left alone: nothing is laid out or read aloud again.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showSpot() {
  const { spot, pictures } = state;
  for (const { ring, tag } of panes) ring.hidden = tag.hidden = !spot;
  if (!spot) {
    say(byId("under"), `${byTouch.matches ? "Tap" : "Point at"} the photo to see what is there.`);
    return;
  }
  const { left, top, width, height } = photoBox();
  const [x, y] = [left + spot[0] * width, top + spot[1] * height];
  const found = idAt(pictures.prediction, spot);
  const label = pictures.truth ? idAt(pictures.truth, spot) : null;
  for (const { kind, ring, tag } of shownPanes()) {
    const [name, more] = tagText(kind, found, label);
    say(tag.querySelector("b"), name);
    say(tag.querySelector("small"), more);
    ring.style.translate = `${x}px ${y}px`;
    tag.classList.toggle("left", x > size[0] / 2);
    tag.classList.toggle("above", y > size[1] / 2);
    tag.style.translate = `${x}px ${y}px`;
  }
  const truth = label === null ? "" : label === found ? " Right." : ` Truth: ${nameOf(label)}.`;
  const share = `${numbersOf(found).replace(",", " of the photo,")}${numbersOf(found).includes(",") ? "" : " of the photo"}`;
  say(byId("under"), `${nameOf(found)}: ${share}.${truth}`);
}

// ---- The view: zoom and pan, the same in all panes.

function look() {
  if (state.number === null) return;
  state.zoom = clamp(state.zoom, 1, MOST_ZOOM);
  const { width, height } = photoBox();
  state.centre = [width, height].map((length, axis) => {
    const half = size[axis] / 2 / length;
    return half >= 0.5 ? 0.5 : clamp(state.centre[axis], half, 1 - half);
  });
  stage.classList.toggle("zoomed", state.zoom > 1);
  byId("fit").textContent = `${Math.round(100 * state.zoom)} %`;
  byId("fit").setAttribute("aria-label", `Whole photo; zoom is ${Math.round(100 * state.zoom)} %`);
  byId("farther").disabled = state.zoom <= 1;
  byId("nearer").disabled = state.zoom >= MOST_ZOOM;
  redraw();
}

// Zoom so that what is at a place of the pane stays there, or what is given comes there.
function zoomBy(factor, place = size.map((length) => length / 2), fixed = toPhoto(place)) {
  state.zoom = clamp(state.zoom * factor, 1, MOST_ZOOM);
  const { width, height } = photoBox();
  state.centre = [width, height].map((length, axis) => fixed[axis] - (place[axis] - size[axis] / 2) / length);
  look();
}

function panBy(x, y) {
  const { width, height } = photoBox();
  state.centre = [state.centre[0] - x / width, state.centre[1] - y / height];
  look();
}

function wholePhoto() {
  state.zoom = 1;
  look();
}

function moveSpot(x, y) {
  const box = photoBox();
  const spot = (state.spot ?? state.centre).map((value, axis) =>
    clamp(value + ([x, y][axis] * size[axis]) / [box.width, box.height][axis], 0, 0.9999));
  const place = [box.left + spot[0] * box.width, box.top + spot[1] * box.height];
  panBy(...place.map((value, axis) => clamp(value, 0, size[axis]) === value ? 0 : -[x, y][axis] * size[axis]));
  read(spot);
}

const fingers = new Map(); // that are down on a pane, and where
const placeIn = (frame, { clientX, clientY }) => {
  const box = frame.getBoundingClientRect();
  return [clientX - box.left, clientY - box.top];
};

function pinch(frame, moved) {
  const before = [...fingers.values()];
  fingers.set(moved.pointerId, placeIn(frame, moved));
  const after = [...fingers.values()];
  const apart = ([a, b]) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
  const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  zoomBy(apart(after) / apart(before), middle(after), toPhoto(middle(before)));
}

for (const { frame, canvas, divider } of panes) {
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeIn(frame, event));
    if (fingers.size === 1) read(toPhoto(placeIn(frame, event)));
  });
  canvas.addEventListener("pointermove", (event) => {
    const place = placeIn(frame, event);
    if (event.pointerType === "mouse") state.pointer = { frame, clientX: event.clientX, clientY: event.clientY };
    if (fingers.has(event.pointerId) && fingers.size === 2) return pinch(frame, event);
    if (fingers.has(event.pointerId)) {
      const [x, y] = fingers.get(event.pointerId);
      fingers.set(event.pointerId, place);
      if (state.zoom > 1) panBy(place[0] - x, place[1] - y);
    }
    if (fingers.size < 2) read(toPhoto(place));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "mouse" || fingers.size) return;
    state.pointer = null;
    read(null);
  });
  canvas.addEventListener("dblclick", (event) => {
    if (state.zoom > 1) wholePhoto(); else zoomBy(3, placeIn(frame, event));
  });
  canvas.addEventListener("wheel", (event) => {
    const factor = Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015) * (event.ctrlKey ? 6 : 1));
    if (factor < 1 && state.zoom <= 1 && !event.ctrlKey) return; // the whole photo is shown: let the page scroll
    event.preventDefault();
    zoomBy(factor, placeIn(frame, event));
  }, { passive: false });

  const slide = (event) => setSwipe(placeIn(frame, event)[0] / size[0]);
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    slide(event);
  });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) slide(event);
  });
  divider.addEventListener("keydown", (event) => {
    const places = { ArrowLeft: state.swipe - 0.02, ArrowRight: state.swipe + 0.02, Home: 0, End: 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    setSwipe(places[event.key]);
  });
}
byId("nearer").addEventListener("click", () => zoomBy(1.5));
byId("farther").addEventListener("click", () => zoomBy(1 / 1.5));
byId("fit").addEventListener("click", wholePhoto);

// ---- What is shown: photo, overlay or map, swiped or not, and which panes.

function setOpacity(opacity) {
  state.opacity = opacity;
  if (opacity > 0 && opacity < 1) state.overlay = opacity;
  const mix = opacity === 0 ? "photo" : opacity === 1 ? "map" : "overlay";
  for (const button of all("[data-mix]")) button.setAttribute("aria-pressed", button.dataset.mix === mix);
  byId("opacity").value = Math.round(100 * opacity);
  byId("opacity-text").textContent = `${Math.round(100 * opacity)} %`;
  redraw();
}

const setMix = (mix) => setOpacity({ photo: 0, overlay: state.overlay, map: 1 }[mix]);

function setSwipe(place) {
  state.swipe = place === null ? null : clamp(place, 0, 1);
  byId("swipe").setAttribute("aria-pressed", place !== null);
  for (const { divider } of panes) {
    divider.hidden = place === null;
    divider.style.left = `${100 * (state.swipe ?? 0)}%`;
    divider.setAttribute("aria-valuenow", Math.round(100 * (state.swipe ?? 0)));
  }
  redraw();
}

function setView(view) {
  state.view = view;
  arrange();
}

// The view asked for, as far as this photo has a truth and the screen is wide enough.
function arrange() {
  const judged = state.pictures?.truth;
  const view = !judged || (state.view === "beside" && narrow.matches) ? "prediction" : state.view;
  const before = shownPanes().map(({ kind }) => kind).join();
  for (const { figure, kind } of panes) figure.hidden = view !== "beside" && view !== kind;
  byId("viewer").classList.toggle("beside", view === "beside");
  byId("viewer").classList.toggle("judged", Boolean(judged));
  byId("views").hidden = !judged;
  for (const button of all("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === view);
  if (before !== shownPanes().map(({ kind }) => kind).join()) read(null);
  measure();
}

byId("opacity").addEventListener("input", ({ target }) => setOpacity(target.value / 100));
byId("swipe").addEventListener("click", () => setSwipe(state.swipe === null ? 0.5 : null));
for (const button of all("[data-mix]")) button.addEventListener("click", () => setMix(button.dataset.mix));
for (const button of all("[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
narrow.addEventListener("change", arrange);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", arrange);
new ResizeObserver(() => { if (state.pictures) measure(); }).observe(stage);

// ---- Classes: the legend lights up and hides.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function pill(k) {
  const { name, colour: paper, ink } = data.classes[k];
  const button = element("button", { type: "button", class: "pill", "data-light": k, title: name }, element("bdi", {}, name));
  button.style.background = paper;
  button.style.color = ink;
  return button;
}

function toggle(set, k) {
  if (!set.delete(k)) set.add(k);
}

function light(k) {
  toggle(state.lit, k);
  state.hidden.delete(k);
  if (state.opacity === 0 && state.lit.size) setMix("overlay");
  markClasses();
}

function hide(k) {
  toggle(state.hidden, k);
  state.lit.delete(k);
  markClasses();
}

function showAll() {
  state.lit.clear();
  state.hidden.clear();
  markClasses();
}

// What is lit up and not to be seen is told.
const lacks = { truth: "predicted, but not in the truth", prediction: "in the truth, but never predicted", errors: "" };

function noteMissing() {
  for (const { kind, note } of panes) {
    const names = [...litIn(kind, false)].map(nameOf);
    note.hidden = names.length === 0;
    say(note, names.length ? `${names.join(", ")}: ${lacks[kind]} in this photo` : "");
  }
}

function markClasses() {
  for (const button of all(".side [data-light]")) button.setAttribute("aria-pressed", state.lit.has(Number(button.dataset.light)));
  for (const button of all(".side [data-hide]")) {
    const hidden = state.hidden.has(Number(button.dataset.hide));
    button.setAttribute("aria-pressed", hidden);
    button.closest("tr").classList.toggle("off", hidden);
  }
  byId("plain").hidden = state.lit.size + state.hidden.size === 0;
  noteMissing();
  repaint();
}

// The columns of the legend after the name: heading, what it is sorted by, its text.
const columns = [
  { key: "area", heading: "Area", value: ([, share]) => share, text: percent, has: () => true },
  { key: "score", heading: "Score", value: ([, , certainty]) => certainty, text: (value) => value?.toFixed(2) ?? "–",
    has: ({ classes }) => classes.some(([, , certainty]) => certainty !== null) },
  { key: "iou", heading: "IoU", value: (entry) => entry[4], text: score, has: ({ iou }) => iou !== null },
];

function fillLegend(photo) {
  const here = columns.filter(({ has }) => has(photo));
  byId("legend-head").replaceChildren(
    element("th", { scope: "col" }, "Class"),
    ...here.map(({ heading }) => element("th", { scope: "col" }, heading)),
    element("td"),
  );
  byId("legend").replaceChildren(...photo.classes.map((entry) => {
    const [k, share, , labelled] = entry;
    const name = element("th", { scope: "row" }, pill(k));
    if (!share) name.append(" ", element("small", {}, `only in the truth, ${percent(labelled)}`));
    const hideButton = element("button", { type: "button", class: "hide", "data-hide": k, "aria-label": `Hide ${nameOf(k)}` }, "hide");
    const cells = here.map(({ value, text }) => element("td", {}, text(value(entry))));
    return element("tr", {}, name, ...cells, element("td", {}, hideButton));
  }));
}

function fillMistakes({ accuracy, mistakes }) {
  byId("mistakes").hidden = accuracy === null;
  if (accuracy === null) return;
  byId("wrong").textContent = `${percent(1 - accuracy)} of the labelled pixels are wrong. Choose a class to see it in `
    + "red where it was missed and in blue where it was predicted by mistake.";
  byId("mixed-up").replaceChildren(...mistakes.map(([truth, found, share]) =>
    element("li", {}, pill(truth), element("span", {}, "taken for"), pill(found), element("b", {}, percent(share)))));
}

byId("viewer").addEventListener("click", ({ target }) => {
  const [lit, hidden] = [target.closest("[data-light]"), target.closest("[data-hide]")];
  if (lit) light(Number(lit.dataset.light));
  if (hidden) hide(Number(hidden.dataset.hide));
});
byId("plain").addEventListener("click", showAll);

// ---- Photos: their order, those of one class, and the one shown.

const items = all("#photos > li").sort((a, b) => numberOf(a) - numberOf(b));
let sequence = []; // numbers of the photos listed, in their order
function numberOf(item) { return Number(item.id.slice("photo-".length)); }

// What a photo has of the class that alone is listed: its IoU where there is a truth, else its share.
function ofClass(number, k) {
  const found = data.photos[number].classes.find(([id]) => id === k);
  if (!found) return null;
  return data.photos[number].iou === null ? { value: -found[1], text: percent(found[1]) } : { value: found[4] ?? 2, text: `IoU ${score(found[4])}` };
}

const orders = {
  given: (number) => number,
  worst: (number) => data.photos[number].iou ?? Infinity,
  best: (number) => -(data.photos[number].iou ?? -Infinity),
  unsure: (number) => data.photos[number].certainty ?? Infinity,
};

function listPhotos() {
  const { only } = state;
  const listed = data.photos.map((_, number) => number).filter((number) => only === null || ofClass(number, only));
  const by = only === null ? orders[byId("order").value] : (number) => ofClass(number, only).value;
  if (by) listed.sort((a, b) => { const [x, y] = [by(a), by(b)]; return x === y ? a - b : x - y; });
  else listed.sort((a, b) => data.photos[a].name.localeCompare(data.photos[b].name, undefined, { numeric: true }) || a - b);
  sequence = listed;
  byId("photos").append(...listed.map((number) => items[number]));
  items.forEach((item, number) => {
    item.hidden = !listed.includes(number);
    const { iou, certainty } = data.photos[number];
    const sure = byId("order").value === "unsure" && certainty !== null ? `score ${certainty.toFixed(2)}` : "";
    item.querySelector("small").textContent = only !== null && !item.hidden
      ? ofClass(number, only).text : sure || (iou === null ? "" : `IoU ${score(iou)}`);
  });
  const total = `${items.length} photo${items.length === 1 ? "" : "s"}`;
  byId("count").textContent = only === null ? total : `${listed.length} of ${total} with ${nameOf(only)}`;
  byId("everything").hidden = only === null;
  byId("everything").textContent = "List all photos";
}

function listOnly(k) {
  state.only = k;
  listPhotos();
  if (k === null) return show(state.number);
  state.lit = new Set([k]);
  state.hidden.clear();
  if (state.opacity === 0) setMix("overlay");
  show(sequence[0]);
}

// A long name is shown as under its thumbnail, without its middle.
function fillName(number) {
  const { name } = data.photos[number];
  const end = items[number].querySelector("bdi span:last-child")?.textContent.length ?? 0;
  const parts = end ? [name.slice(0, -end), name.slice(-end)].map((part) => element("span", {}, part)) : [name];
  byId("name").className = end ? "middle" : "";
  byId("name").replaceChildren(...parts);
}

async function show(number) {
  state.wanted = number;
  let pictures;
  try {
    pictures = await picturesOf(number);
  } catch (error) {
    if (state.wanted === number) byId("under").textContent = `${data.photos[number].name} cannot be shown: ${error.message}`;
    return;
  }
  if (state.wanted !== number) return; // another photo was asked for meanwhile
  const isOther = state.number !== number;
  Object.assign(state, { number, pictures });
  if (isOther) Object.assign(state, { zoom: 1, centre: [0.5, 0.5], spot: null });
  const photo = data.photos[number];
  stage.style.setProperty("--shape", photo.shape);
  stage.dataset.photo = number;
  fillName(number);
  const place = sequence.indexOf(number);
  byId("place").textContent = `${place + 1} of ${sequence.length}${photo.iou === null ? "" : `, IoU ${score(photo.iou)}`}`;
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place === sequence.length - 1;
  markItem(number);
  fillLegend(photo);
  fillMistakes(photo);
  describe(photo);
  markClasses();
  arrange();
  if (state.pointer) read(toPhoto(placeIn(state.pointer.frame, state.pointer)));
  keepNeighbours(number);
}

const wrong = ({ accuracy }) => (accuracy === null ? "nothing is labelled" : `${percent(1 - accuracy)} wrong`);

function describe(photo) {
  const told = (column) => photo.classes.filter((entry) => entry[column]).sort((a, b) => b[column] - a[column])
    .map((entry) => `${nameOf(entry[0])} ${percent(entry[column])}`).join(", ");
  const texts = {
    truth: `Truth of ${photo.name}: ${told(3)}`,
    prediction: `Prediction for ${photo.name}: ${told(1)}`,
    errors: `Errors in ${photo.name}: ${wrong(photo)}`,
  };
  for (const { kind, canvas, figure } of panes) {
    canvas.setAttribute("aria-label", texts[kind]);
    if (kind === "errors") figure.querySelector("figcaption small").textContent = wrong(photo);
  }
}

function markItem(number) {
  for (const item of items) {
    const link = item.querySelector("a");
    const isShown = numberOf(item) === number;
    link.setAttribute("aria-current", isShown);
    link.tabIndex = isShown ? 0 : -1; // one stop of the Tab key for all photos
    if (!isShown) continue;
    const [list, box] = [byId("photos"), item.getBoundingClientRect()];
    const frame = list.getBoundingClientRect();
    if (box.left < frame.left || box.right > frame.right) list.scrollLeft += box.left - frame.left - (frame.width - box.width) / 2;
  }
}

function step(by) {
  const place = sequence.indexOf(state.wanted) + by;
  if (place in sequence) show(sequence[place]);
}

byId("photos").addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (!item) return;
  event.preventDefault();
  show(numberOf(item));
});
byId("order").addEventListener("change", () => {
  state.only = null;
  listPhotos();
  show(sequence[0]);
});
byId("everything").addEventListener("click", () => listOnly(null));
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));

// ---- Keys

const help = byId("help");
const keys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  1: () => setMix("photo"), 2: () => setMix("overlay"), 3: () => setMix("map"),
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: wholePhoto,
  s: () => byId("swipe").click(),
  b: () => setView("beside"), t: () => setView("truth"), p: () => setView("prediction"), e: () => setView("errors"),
  Escape: showAll, "?": () => help.showModal(),
};
const moves = { ArrowLeft: [-0.04, 0], ArrowRight: [0.04, 0], ArrowUp: [0, -0.04], ArrowDown: [0, 0.04] };

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || !byId("use-keys").checked || state.number === null) return;
  if (target.closest("select, input:not([type=range]), textarea")) return;
  const isArrow = key.startsWith("Arrow");
  if (isArrow && target.closest("input, [role=slider]")) return;
  if (isArrow && event.shiftKey) {
    event.preventDefault();
    return moveSpot(...moves[key]);
  }
  const action = keys[key] ?? keys[key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});
byId("ask").addEventListener("click", () => help.showModal());
byId("close").addEventListener("click", () => help.close());

// ---- The beginning

function begin() {
  document.documentElement.classList.add("live");
  byId("still").hidden = true;
  byId("viewer").hidden = false;
  for (const each of all(".control, .hint")) each.hidden = false;
  setOpacity(OVERLAY);
  listPhotos();
  show(sequence[0]);
}
