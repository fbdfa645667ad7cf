// The page is whole without this script. It adds what needs a hand: reading curves, time, sorting, finding.
const data = JSON.parse(document.getElementById("data").textContent);
for (const element of all(".hint, .control")) element.hidden = false;

// ---- Curves: every chart is read at the same step, under a pointer, a finger or the arrow keys.

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
}

function svg(parent, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

const percent = (step) => `${(100 * step) / Math.max(1, data.lastStep)}%`;

function readCharts(step) {
  for (const chart of charts) chart.read(step);
}

function prepareChart(figure) {
  const curves = data.charts[figure.dataset.chart];
  const logged = [...new Set(curves.flatMap(({ steps }) => steps))].sort((a, b) => a - b);
  const keys = all(".key li", figure);
  const plot = figure.querySelector(".plot");
  const drawing = plot.querySelector("svg");
  const cursor = svg(drawing, "line", { class: "cursor", y1: 0, y2: "100%", visibility: "hidden" });
  const rings = keys.map((key) => svg(drawing, "circle", { class: `ring ${key.className}`, r: 4, visibility: "hidden" }));
  let now = data.lastStep;

  function read(step) {
    const places = curves.map(({ steps }) => nearest(steps, step));
    now = logged[nearest(logged, step)];
    figure.querySelector(".at b").textContent = now.toLocaleString("en");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, percent(now));
    cursor.setAttribute("visibility", "visible");
    const said = curves.map(({ name, steps, heights, texts }, curve) => {
      const [k, key, ring] = [places[curve], keys[curve], rings[curve]];
      key.querySelector("b").textContent = texts[k];
      key.querySelector("span").textContent = steps[k].toLocaleString("en");
      key.querySelector("small").hidden = steps[k] === now;
      ring.setAttribute("visibility", heights[k] === null ? "hidden" : "visible");
      ring.setAttribute("cx", percent(steps[k]));
      ring.setAttribute("cy", `${100 - (heights[k] ?? 0)}%`);
      return `${name} ${texts[k]}`;
    });
    plot.setAttribute("aria-valuenow", now);
    plot.setAttribute("aria-valuetext", `step ${now}: ${said.join(", ")}`);
  }

  const slider = { role: "slider", tabindex: 0, "aria-label": `${figure.querySelector("h3").firstChild.textContent} by step` };
  Object.assign(slider, { "aria-valuemin": 0, "aria-valuemax": data.lastStep, "aria-valuenow": now });
  for (const [key, value] of Object.entries(slider)) plot.setAttribute(key, value);

  const point = (event) => {
    const box = drawing.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    readCharts(logged[nearest(logged, share * data.lastStep)]);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.round(logged.length / 10));
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page };
    Object.assign(moves, { Home: -logged.length, End: logged.length });
    if (!(event.key in moves)) return;
    event.preventDefault();
    const place = nearest(logged, now) + moves[event.key];
    readCharts(logged[Math.min(logged.length - 1, Math.max(0, place))]);
  });
  return { read };
}

const charts = all(".chart").map(prepareChart);

// ---- Samples: one slider moves all predictions through the run.

const time = document.getElementById("time");
const play = document.getElementById("play");
let playing = null;

function showStep(place) {
  const step = data.sampleSteps[place];
  for (const figure of all("[data-step]")) figure.hidden = Number(figure.dataset.step) !== step;
  time.value = place;
  time.setAttribute("aria-valuetext", `step ${step}`);
  document.getElementById("shown-step").textContent = step.toLocaleString("en");
}

function stop() {
  clearInterval(playing);
  playing = null;
  play.textContent = "Play";
}

if (time) {
  const last = data.sampleSteps.length - 1;
  showStep(data.shown);
  time.addEventListener("input", () => { stop(); showStep(Number(time.value)); });
  play.addEventListener("click", () => {
    if (playing !== null) return stop();
    if (Number(time.value) === last) showStep(0);
    play.textContent = "Pause";
    playing = setInterval(() => {
      showStep(Number(time.value) + 1);
      if (Number(time.value) === last) stop();
    }, 700);
  });
}

// ---- Samples: what stands under the pointer. The colours of the maps name their classes.

const canvases = new WeakMap();

function classAt(picture, x, y) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (!canvases.has(picture)) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    canvases.set(picture, context);
  }
  const place = [Math.min(width - 1, Math.floor(x * width)), Math.min(height - 1, Math.floor(y * height))];
  const colour = canvases.get(picture).getImageData(...place, 1, 1).data.slice(0, 3);
  return data.classes[`#${[...colour].map((value) => value.toString(16).padStart(2, "0")).join("")}`] ?? "not labelled";
}

for (const sample of all(".sample")) {
  const pictures = sample.querySelector(".pictures");
  const under = sample.querySelector(".under");
  let [x, y] = [0.5, 0.5];

  const read = (newX, newY) => {
    [x, y] = [newX, newY].map((value) => Math.min(1, Math.max(0, value)));
    sample.classList.add("read");
    sample.style.setProperty("--x", `${100 * x}%`);
    sample.style.setProperty("--y", `${100 * y}%`);
    const truth = classAt(sample.querySelector(".truth"), x, y);
    const shown = sample.querySelector("figure:not([hidden]) .prediction");
    under.textContent = shown ? `Truth: ${truth}. Prediction: ${classAt(shown, x, y)}.` : `Truth: ${truth}.`;
  };

  const point = (event) => {
    const picture = event.target.closest(".picture");
    if (!picture) return;
    const box = picture.getBoundingClientRect();
    read((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  pictures.addEventListener("pointermove", point);
  pictures.addEventListener("pointerdown", point);
  pictures.tabIndex = 0;
  pictures.setAttribute("role", "group");
  pictures.setAttribute("aria-label", "Pictures. The arrow keys move the marker.");
  pictures.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    read(x + moves[event.key][0], y + moves[event.key][1]);
  });
  if (time) time.addEventListener("input", () => { if (sample.classList.contains("read")) read(x, y); });
}

// ---- Classes: sorted by a column, found by a part of the name.

const table = document.querySelector(".classes");

function find(text) {
  const wanted = text.trim().toLowerCase();
  const rows = all("[data-name]");
  for (const row of rows) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
  const found = rows.filter((row) => !row.hidden).length;
  document.getElementById("found").textContent = wanted ? `${found} of ${rows.length}` : "";
}

if (table) {
  makeSortable(table);
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => find(filter.value));
}
