"use strict";

// Runs in a worker, behind onnxruntime-web: the pixels of a photo in, its label map out. What stands around the graph
// is what Python does: Pillow's bilinear filter to the bit, the processor's table of levels, logits enlarged and then
// the most likely class.

const FRACTION_BITS = 22; // of the weights of Pillow's filter
const HALF = 2 ** (FRACTION_BITS - 1);
let session = null;
let prepared = null; // what the processor does, and the number of classes

// Which pixels of a side of `length` make each of `size` pixels, and how much: as Pillow computes and rounds it.
function filter(length, size) {
  const scale = length / size;
  const reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs((k + first - centre + 0.5) / reach)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => Math.trunc((weight / sum) * 2 ** FRACTION_BITS + 0.5)) };
  });
}

// Planes of red, green and blue, of another width.
function across(planes, width, height, newWidth) {
  const columns = filter(width, newWidth);
  const found = new Uint8Array(3 * newWidth * height);
  for (let row = 0; row < 3 * height; row += 1) {
    for (let x = 0; x < newWidth; x += 1) {
      const { first, weights } = columns[x];
      let sum = HALF;
      for (let k = 0, at = row * width + first; k < weights.length; k += 1, at += 1) sum += planes[at] * weights[k];
      found[row * newWidth + x] = sum >> FRACTION_BITS;
    }
  }
  return found;
}

// The same of another height.
function down(planes, width, height, newHeight) {
  const found = new Uint8Array(3 * width * newHeight);
  filter(height, newHeight).forEach(({ first, weights }, y) => {
    for (let channel = 0; channel < 3; channel += 1) {
      for (let x = 0; x < width; x += 1) {
        let sum = HALF;
        for (let k = 0, at = (channel * height + first) * width + x; k < weights.length; k += 1, at += width) sum += planes[at] * weights[k];
        found[(channel * newHeight + y) * width + x] = sum >> FRACTION_BITS;
      }
    }
  });
  return found;
}

// RGBA pixels of one size as planes of another. From its release 13 on Pillow goes down first where the height shrinks
// by more than twice the pixels that the width does.
function resize(pixels, width, height, newWidth, newHeight, mayGoDownFirst) {
  const planes = new Uint8Array(3 * width * height);
  for (let channel = 0, k = 0; channel < 3; channel += 1) {
    for (let at = channel; at < pixels.length; at += 4, k += 1) planes[k] = pixels[at];
  }
  const isDownFirst = mayGoDownFirst && height > newHeight && height - newHeight > 2 * (width - newWidth);
  const goAcross = (given, high) => (width === newWidth ? given : across(given, width, high, newWidth));
  const goDown = (given, wide) => (height === newHeight ? given : down(given, wide, height, newHeight));
  return isDownFirst ? goAcross(goDown(planes, width), newHeight) : goDown(goAcross(planes, height), newWidth);
}

// Where a pixel lies between two logits: the first of them, and how much the second has.
function between(size, count) {
  return Array.from({ length: size }, (_, place) => {
    const there = Math.max(0, ((place + 0.5) * count) / size - 0.5);
    const first = Math.min(Math.floor(there), count - 1);
    return { first, second: Math.min(first + 1, count - 1), share: there - first };
  });
}

// The most likely class of every pixel, of logits (K, h, w) enlarged bilinearly. Between four logits only a class can
// win whose largest reaches the smallest of every other class, which are few; the others are passed over.
function labelMap(logits, classes, rows, columns, width, height) {
  const ids = new Uint8Array(width * height);
  const across = between(width, columns);
  const down = between(height, rows);
  const candidates = new Int32Array(classes);
  const plane = rows * columns;
  for (let top = 0; top < height;) {
    let bottom = top;
    while (bottom < height && down[bottom].first === down[top].first) bottom += 1;
    const [above, below] = [down[top].first * columns, down[top].second * columns];
    for (let left = 0; left < width;) {
      let right = left;
      while (right < width && across[right].first === across[left].first) right += 1;
      const [here, there] = [across[left].first, across[left].second];
      const corners = [above + here, above + there, below + here, below + there];
      let floor = -Infinity;
      for (let k = 0, at = 0; k < classes; k += 1, at += plane) {
        floor = Math.max(floor, Math.min(logits[at + corners[0]], logits[at + corners[1]], logits[at + corners[2]], logits[at + corners[3]]));
      }
      let count = 0;
      for (let k = 0, at = 0; k < classes; k += 1, at += plane) {
        if (Math.max(logits[at + corners[0]], logits[at + corners[1]], logits[at + corners[2]], logits[at + corners[3]]) >= floor) candidates[count++] = k;
      }
      for (let y = top; y < bottom; y += 1) {
        const v = down[y].share;
        for (let x = left; x < right; x += 1) {
          const u = across[x].share;
          let best = candidates[0];
          for (let n = 0, most = -Infinity; n < count && count > 1; n += 1) {
            const at = candidates[n] * plane;
            const upper = logits[at + corners[0]] + u * (logits[at + corners[1]] - logits[at + corners[0]]);
            const lower = logits[at + corners[2]] + u * (logits[at + corners[3]] - logits[at + corners[2]]);
            const value = upper + v * (lower - upper);
            if (value > most) { most = value; best = candidates[n]; }
          }
          ids[y * width + x] = best;
        }
      }
      left = right;
    }
    top = bottom;
  }
  return ids;
}

async function start({ graph, wasm, glue, threads, ...given }) {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([glue], { type: "text/javascript" })) };
  prepared = { ...given, levels: given.levels.map((each) => Float32Array.from(each)) };
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return {};
}

async function segment({ pixels, width, height }) {
  const [rows, columns] = prepared.size ?? [Math.max(height, 32), Math.max(width, 32)];
  const planes = resize(pixels, width, height, columns, rows, prepared.mayGoDownFirst);
  const images = new Float32Array(planes.length);
  for (let k = 0; k < planes.length; k += 1) images[k] = prepared.levels[Math.floor(k / (rows * columns))][planes[k]];
  const { logits } = await session.run({ images: new ort.Tensor("float32", images, [1, 3, rows, columns]) });
  const [, classes, high, wide] = logits.dims;
  if (classes !== prepared.classes) throw new Error(`the graph gives ${classes} logits for ${prepared.classes} classes`);
  const ids = labelMap(logits.data, classes, high, wide, width, height);
  const counts = new Array(classes).fill(0);
  for (const id of ids) counts[id] += 1;
  return { ids, counts };
}

addEventListener("message", async ({ data: { number, task, given } }) => {
  try {
    const found = await { start, segment }[task](given);
    postMessage({ number, found }, found.ids ? [found.ids.buffer] : []);
  } catch (error) {
    postMessage({ number, error: error?.message ?? String(error) });
  }
});
