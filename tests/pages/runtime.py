"""A stand-in for onnxruntime-web, and a model that it runs: logits that are weighted sums of single pixels.

What the page does before and after the graph is the same whatever the graph; the real runtime has tests of its own,
which need its npm package.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from segformer import ImageProcessor, SegformerConfig, Segmenter
from segformer.pages.model_page import RUNTIME_FILES
from segformer.weights.pretrained import LoadReport

NAMES = ["wall", "floor", "sky ", "tree", "background"]
WEIGHTS = [[0.5, -0.2, 0.1], [-0.7, 0.9, 0.2], [0.1, -0.6, 0.8], [0.9, 0.3, -1.1], [-0.4, -0.4, -0.1]]

# It insists on what the real one needs: the WebAssembly as bytes, and leave to compile it and to import the glue.
CODE = """/*! ONNX Runtime Web v9.8.7 */
var ort = (() => {
  class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
  class InferenceSession {
    static async create(graph) {
      const { wasmBinary, wasmPaths } = ort.env.wasm;
      await WebAssembly.compile(wasmBinary);
      const glue = await import(wasmPaths.mjs);
      if (glue.default !== "glue") throw new Error("no glue");
      return Object.assign(new InferenceSession(), JSON.parse(new TextDecoder().decode(graph)));
    }
    async run({ images: { data, dims: [, , height, width] } }) {
      const [rows, columns] = [Math.ceil(height / 4), Math.ceil(width / 4)];
      const logits = new Float32Array(this.weights.length * rows * columns);
      this.weights.forEach((each, k) => {
        for (let y = 0; y < rows; y += 1) for (let x = 0; x < columns; x += 1) {
          const at = 4 * y * width + 4 * x;
          const sampled = each.map((weight, c) => weight * data[c * height * width + at]);
          logits[(k * rows + y) * columns + x] = sampled.reduce((a, b) => a + b);
        }
      });
      return { logits: new Tensor("float32", logits, [1, this.weights.length, rows, columns]) };
    }
  }
  return { env: { wasm: {} }, Tensor, InferenceSession };
})();
"""


class SampledModel(nn.Module):
    """What the stand-in computes, in Python: (B, 3, H, W) -> (B, K, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.config = SegformerConfig(id2label=dict(enumerate(NAMES)))
        self.load_report = LoadReport()
        self.weights = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("kc,bcyx->bkyx", self.weights, images[:, :, ::4, ::4])


def sampled_segmenter(processor: ImageProcessor) -> Segmenter:
    """Photos through a processor and the model."""
    return Segmenter(SampledModel(WEIGHTS), processor, "cpu")  # type: ignore[arg-type]


def write_graph(path: Path) -> Path:
    """The model as the stand-in reads it."""
    path.write_text(json.dumps({"weights": WEIGHTS}))
    return path


def write_runtime(folder: Path) -> Path:
    """The files of the stand-in."""
    folder.mkdir(parents=True)
    contents = (CODE.encode(), b'export default "glue";\n', b"\0asm\1\0\0\0")
    for name, content in zip(RUNTIME_FILES, contents, strict=True):
        (folder / name).write_bytes(content)
    return folder
