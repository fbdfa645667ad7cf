// Without this script the page is a list of overlays and tables. With it, photos are decoded from the page and shown.

// The class ids of a palette PNG with a byte a pixel and no filter. Canvases may give back other colours than were
// drawn, in browsers that hide their user's traces, so that ids are not read through one.
async function readIds(png) {
  const numbers = new DataView(png.buffer);
  const [width, height] = [numbers.getUint32(16), numbers.getUint32(20)];
  const parts = [];
  for (let at = 8; at < png.length; at += 12 + numbers.getUint32(at)) {
    const isData = String.fromCharCode(...png.subarray(at + 4, at + 8)) === "IDAT";
    if (isData) parts.push(png.subarray(at + 8, at + 8 + numbers.getUint32(at)));
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  const ids = new Uint8Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const start = y * (width + 1) + 1; // every row begins with the number of its filter
    ids.set(rows.subarray(start, start + width), y * width);
  }
  return { width, height, ids };
}

async function decode(number) {
  const [photo, ...maps] = byId(`pixels-${number}`).textContent.trim().split("\n").map(bytesOf);
  const [picture, prediction, truth = null] = await Promise.all([
    createImageBitmap(new Blob([photo], { type: "image/jpeg" })),
    ...maps.map(readIds),
  ]);
  return { picture, prediction, truth, layers: {} };
}

// ---- The tables below: sorted by a column; a class lists its photos, a mistake shows where it is largest.

function goToViewer() {
  byId("viewer").scrollIntoView();
  stage.focus({ preventScroll: true });
}

function prepareTables() {
  makeSortable(document.querySelector(".totals"));
  for (const row of all("[data-class]")) {
    const name = row.querySelector("th span");
    const button = element("button", { type: "button", class: "choose" }, element("bdi", {}, name.textContent));
    button.addEventListener("click", () => {
      listOnly(Number(row.dataset.class));
      goToViewer();
    });
    name.replaceChildren(button);
  }
  for (const link of all("[data-light]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      if (state.only !== null) { state.only = null; listPhotos(); }
      state.lit = new Set([Number(link.dataset.light)]);
      state.hidden.clear();
      if (state.opacity === 0) setMix("overlay");
      show(Number(link.hash.slice("#photo-".length)));
      goToViewer();
    });
  }
}

// ---- The beginning

if (data.photos.length && "DecompressionStream" in window) {
  prepareTables();
  begin();
}
