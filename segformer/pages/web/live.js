// The page of an exported model: photos are chosen, dropped or pasted, segmented in a worker, and shown as others are.
const AS_STORED = { colorSpaceConversion: "none" }; // pixels as the file has them, upright
const MOST_SIDE = 4096; // of what is shown; a label map is counted at the photo's own size
const BAND = 512; // rows of a photo read at once: some browsers have no canvas as large as a photo
const shots = []; // what is kept of every photo
const status = byId("status");

function tell(text, isWrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", isWrong);
}

// ---- The runtime and the graph: scripts beside this page hold them, packed, for those alone load from a disk, too.

const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

function load(name) {
  return new Promise((done, fail) => {
    const script = element("script", { src: name });
    script.addEventListener("load", done);
    script.addEventListener("error", () => fail(new Error(`${name} is not beside this page`)));
    document.head.append(script);
  });
}

async function unpack(name) {
  const parts = self.packed[name].map(bytesOf);
  delete self.packed[name];
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let worker = null;
const asked = new Map(); // what the worker has not answered yet

function ask(task, given, moved) {
  const number = asked.size ? Math.max(...asked.keys()) + 1 : 0;
  return new Promise((done, fail) => {
    asked.set(number, { done, fail });
    worker.postMessage({ number, task, given }, moved);
  });
}

function answer({ data: { number, found, error } }) {
  const { done, fail } = asked.get(number);
  asked.delete(number);
  if (error === undefined) done(found);
  else fail(new Error(error));
}

async function startWorker() {
  tell("Loading the runtime…");
  await load("runtime.js");
  const [code, glue, wasm] = await Promise.all(["code", "glue", "wasm"].map(unpack));
  tell(`Loading the model, ${mebibytes(data.graphBytes)}…`);
  await load("model.js");
  const graph = await unpack("model");
  const scripts = new Blob([code, "\n", data.worker], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(scripts));
  worker.addEventListener("message", answer);
  worker.addEventListener("error", ({ message }) => {
    for (const { fail } of asked.values()) fail(new Error(message || "the browser runs no worker here"));
    asked.clear();
  });
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const given = { graph, wasm, glue, threads, classes: data.classes.length, ...data.processor };
  await ask("start", given, [graph.buffer, wasm.buffer]);
}

// ---- Photos: read as they are stored, on white where they are transparent.

// Browsers that hide their user's traces give back other pixels than were drawn, and no photo can be read.
function readsTrue() {
  const context = Object.assign(document.createElement("canvas"), { width: 32, height: 32 }).getContext("2d", { willReadFrequently: true });
  const drawn = context.createImageData(32, 32);
  drawn.data.forEach((_, k) => { drawn.data[k] = k % 4 === 3 ? 255 : (k * 37) & 255; });
  context.putImageData(drawn, 0, 0);
  return context.getImageData(0, 0, 32, 32).data.every((value, k) => value === drawn.data[k]);
}

function pixelsOf(picture) {
  const { width, height } = picture;
  const pixels = new Uint8ClampedArray(4 * width * height);
  const canvas = Object.assign(document.createElement("canvas"), { width, height: Math.min(BAND, height) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += BAND) {
    const rows = Math.min(BAND, height - top);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, rows);
    context.drawImage(picture, 0, top, width, rows, 0, 0, width, rows);
    pixels.set(context.getImageData(0, 0, width, rows).data, 4 * width * top);
  }
  return pixels;
}

// Every so many-th class id, where a photo is larger than what is shown.
function shrunk({ ids, width, height }) {
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height));
  if (scale === 1) return { ids, width, height };
  const small = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  small.ids = new Uint8Array(small.width * small.height);
  for (let y = 0, k = 0; y < small.height; y += 1) {
    const row = Math.floor(((y + 0.5) * height) / small.height) * width;
    for (let x = 0; x < small.width; x += 1, k += 1) small.ids[k] = ids[row + Math.floor(((x + 0.5) * width) / small.width)];
  }
  return small;
}

async function decode(number) {
  const { file, prediction } = shots[number];
  const { width, height } = prediction;
  const picture = await createImageBitmap(file, { ...AS_STORED, resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  return { picture, prediction, truth: null, layers: {} };
}

// A small overlay, cut to the shape of the list.
async function thumbnailOf(number) {
  const [width, height] = [216, 144];
  const { picture, prediction } = await picturesOf(number);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const scale = Math.max(width / picture.width, height / picture.height);
  const [left, top] = [(width - picture.width * scale) / 2, (height - picture.height * scale) / 2];
  context.drawImage(picture, left, top, picture.width * scale, picture.height * scale);
  context.globalAlpha = OVERLAY;
  context.drawImage(layer({ width, height }, (k) => {
    const [x, y] = [k % width, Math.floor(k / width)].map((place, axis) => (place + 0.5 - [left, top][axis]) / scale);
    const id = idAt(prediction, [x / picture.width, y / picture.height]);
    return data.classes[id].untinted ? CLEAR : colours[id];
  }), 0, 0);
  return canvas;
}

async function segment(file) {
  tell(`Segmenting ${file.name}…`);
  const begun = performance.now();
  let picture;
  try {
    picture = await createImageBitmap(file, AS_STORED);
  } catch {
    throw new Error("this browser cannot read it as a photo");
  }
  const { width, height } = picture;
  const pixels = pixelsOf(picture);
  picture.close();
  const { ids, counts } = await ask("segment", { pixels, width, height }, [pixels.buffer]);
  const classes = counts.map((count, k) => [k, count / ids.length, null, 0, null]).filter(([, share]) => share > 0);
  const number = data.photos.length;
  data.photos.push({
    name: file.name, shape: width / height, classes: classes.sort((a, b) => b[1] - a[1] || a[0] - b[0]),
    certainty: null, iou: null, accuracy: null, mistakes: [],
  });
  shots.push({ file, prediction: shrunk({ ids, width, height }) });
  const link = element("a", { href: `#photo-${number}` }, await thumbnailOf(number), element("bdi", {}, file.name), " ", element("small"));
  const item = element("li", { id: `photo-${number}` }, link);
  items.push(item);
  byId("photos").append(item);
  if (number === 0) begin();
  else listPhotos();
  byId("list").hidden = number === 0;
  document.documentElement.classList.add("some");
  await show(number);
  tell(`${file.name}: ${width} × ${height}, ${((performance.now() - begun) / 1000).toFixed(1)} s`);
}

// ---- Choosing them: one after the other, as the worker takes them.

let queue = Promise.resolve();

function take(files) {
  for (const file of files) {
    queue = queue.then(() => segment(file)).catch((error) => tell(`${file.name}: ${error.message}`, true));
  }
}

function listen() {
  const input = byId("files");
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.documentElement.classList.add("over");
  });
  for (const end of ["dragleave", "drop"]) {
    addEventListener(end, (event) => {
      if (end === "drop" || !event.relatedTarget) document.documentElement.classList.remove("over");
    });
  }
  addEventListener("drop", (event) => {
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => take([...event.clipboardData.files]));
}

async function prepare() {
  const lacking = ["DecompressionStream", "Worker", "WebAssembly", "createImageBitmap"].filter((name) => !(name in self));
  if (lacking.length) return tell(`This browser lacks ${lacking.join(", ")}; a current one has them.`, true);
  if (!readsTrue()) return tell("This browser alters the pixels that a page reads; allow this page to read them, or use another.", true);
  try {
    await startWorker();
  } catch (error) {
    return tell(`The model cannot be started: ${error.message}`, true);
  }
  byId("files").disabled = false;
  listen();
  tell("Ready.");
}

byId("still").hidden = true;
byId("dropzone").hidden = false;
prepare();
