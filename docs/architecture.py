"""Draw the architecture, the paper's Figure 2, with the shapes and sizes that B0 really has.

    python docs/architecture.py             writes architecture.svg beside this file

The layout is made by hand; every number in the picture is read off a model that runs once on a photo of 512 x 512.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
from data.classes import CLASS_NAMES  # noqa: E402
from segformer import VARIANTS, Segformer  # noqa: E402
from segformer.pictures import palette  # noqa: E402

SIDE = 512
TIMES = "\N{MULTIPLICATION SIGN}"

# ----------------------------------------------------------------------------------------------------- what is drawn


class StageFacts(NamedTuple):
    """What there is to say of one stage and of its way through the decoder; shapes are (C, H, W)."""

    blocks: int
    reduction: int  # the paper's R: queries for each key
    parameters: int
    features: Sequence[int]
    projected: Sequence[int]
    enlarged: Sequence[int]


class ModelFacts(NamedTuple):
    """What there is to say of the whole model."""

    stages: list[StageFacts]
    logits: Sequence[int]
    encoder_parameters: int
    decoder_parameters: int


class _Interpolations(TorchFunctionMode):
    """Keeps the shapes that go into ``F.interpolate``, which no module's hook sees, and come out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[Sequence[int], Sequence[int]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate:
            self.shapes.append((args[0].shape[1:], result.shape[1:]))
        return result


def measure() -> ModelFacts:
    """Run the model once and look at what passes."""
    model = Segformer(VARIANTS["b0"]()).eval()
    positions: dict[str, int] = {}  # that come into each part of each attention
    for name, module in model.encoder.named_modules():
        if name.endswith((".query", ".key_value")):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: positions.update({name: inputs[0].shape[1:3].numel()})
            )
    with torch.inference_mode(), _Interpolations() as enlarging:
        features = model.encoder(torch.zeros(1, model.config.num_channels, SIDE, SIDE))
        logits = model.decoder(features)
    finest = enlarging.shapes[0][1]  # the finest map is projected to this size and needs no enlarging
    ways = [(finest, finest), *enlarging.shapes]
    stages = []
    for number, (stage, feature, way) in enumerate(zip(model.encoder.stages, features, ways, strict=True)):
        attention = f"stages.{number}.blocks.0.attention"
        reduction = positions[f"{attention}.query"] // positions[f"{attention}.key_value"]
        stages.append(StageFacts(len(stage.blocks), reduction, _parameters(stage), feature.shape[1:], *way))
    return ModelFacts(stages, logits.shape[1:], _parameters(model.encoder), _parameters(model.decoder))


def _parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# ------------------------------------------------------------------------------------------------------- how it looks

WIDTH, HEIGHT = 664, 862
STAGE = (18, 230)  # left edge and width of the encoder's boxes, and mirrored of the decoder's last
MLP = (372, 112)
TRUNK = 630  # where the maps are added up
FIRST_ROW, PITCH = 292, 118  # middles of the stages
SCENE_TOP, SCENE_HEIGHT = 18, 144
STYLE = """
svg{--paper:#fff;--edge:#d1d9e0;--ink:#1f2328;--faint:#59636e;--line:#818b98;
--blue:#ddf4ff;--blue-box:#fff;--blue-ink:#0550ae;--blue-edge:#54aeff;
--green:#dafbe1;--green-box:#fff;--green-ink:#116329;--green-edge:#4ac26b;--block:#f6f8fa}
@media (prefers-color-scheme:dark){svg{--paper:#151b23;--edge:#3d444d;--ink:#f0f6fc;--faint:#9198a1;--line:#656c76;
--blue:#121d2f;--blue-box:#1c2c46;--blue-ink:#79c0ff;--blue-edge:#4184e4;
--green:#12261e;--green-box:#173a2a;--green-ink:#7ee787;--green-edge:#238636;--block:#212830}}
text{font:18px -apple-system,"Segoe UI",Roboto,Helvetica,Arial,"Liberation Sans","Noto Sans",sans-serif;fill:var(--ink);
text-anchor:middle;dominant-baseline:central}
.title{font-size:25px;font-weight:600}.name{font-weight:600}.faint{fill:var(--faint)}.small{font-size:16.5px}
.left{text-anchor:start}.right{text-anchor:end}
.encoder{fill:var(--blue)}.encoder-box{fill:var(--blue-box);stroke:var(--blue-edge)}.encoder-ink{fill:var(--blue-ink)}
.decoder{fill:var(--green)}.decoder-box{fill:var(--green-box);stroke:var(--green-edge)}
.decoder-ink{fill:var(--green-ink)}.block{fill:var(--block)}.block-box{fill:var(--paper);stroke:var(--line)}
.line{fill:none;stroke:var(--line);stroke-width:2}
.card{fill:var(--paper);stroke:var(--edge)}.map{fill:var(--blue-box);stroke:var(--blue-edge)}
"""


def draw(facts: ModelFacts) -> str:
    """The picture as SVG."""
    # The text keeps to its place in the widest of the usual fonts, DejaVu Sans.
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-label="SegFormer-B0: a photo goes down through the four stages of the encoder; the decoder '
        'projects their maps, enlarges them, adds them up and classifies every pixel">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="var(--line)"/></marker></defs>',
        rect(1, 1, WIDTH - 2, HEIGHT - 2, "card", 14),
        *draw_heading(facts),
        *draw_encoder(facts),
        *draw_decoder(facts),
        *draw_block(),
        "</svg>\n",
    ]
    return "\n".join(parts)


def draw_heading(facts: ModelFacts) -> Iterator[str]:
    """The photo on the left, its label map on the right, and what the model is between them."""
    yield scene(STAGE[0], SCENE_TOP, STAGE[1], SCENE_HEIGHT, classes=False)
    yield scene(WIDTH - sum(STAGE), SCENE_TOP, STAGE[1], SCENE_HEIGHT, classes=True)
    yield text(WIDTH / 2, 44, "SegFormer", "title")
    yield text(WIDTH / 2, 76, "B0", "title")
    yield text(WIDTH / 2, 114, f"{facts.encoder_parameters + facts.decoder_parameters:,}", "small faint")
    yield text(WIDTH / 2, 136, "parameters", "small faint")


def draw_encoder(facts: ModelFacts) -> Iterator[str]:
    """Four stages, one below the other, each halving the map's sides."""
    (left, width), last = STAGE, FIRST_ROW + PITCH * (len(facts.stages) - 1)
    middle = left + width / 2
    yield rect(left - 10, FIRST_ROW - 82, width + 20, last - FIRST_ROW + 156, "encoder", 12)
    yield arrow(f"M{middle} {SCENE_TOP + SCENE_HEIGHT + 4}V{FIRST_ROW - 74}")
    yield text(middle + 12, FIRST_ROW - 106, shape((3, SIDE, SIDE)), "small left")
    for number, stage in enumerate(facts.stages, start=1):
        y = FIRST_ROW + PITCH * (number - 1)
        top, slant = y - 72, 14
        yield f'<path class="encoder-box" d="M{left} {top}h{width}l{-slant} 30h{2 * slant - width}z"/>'
        yield text(middle, top + 15, "Overlap Patch " + ("Merging" if number > 1 else "Embedding"), "small")
        yield rect(left, y - 36, width, 68, "encoder-box", 8)
        yield text(middle, y - 16, f"Transformer Block {number}", "name encoder-ink")
        yield text(left + 14, y + 12, f"{TIMES}{stage.blocks}, R {stage.reduction}", "small left faint")
        yield text(left + width - 14, y + 12, f"{stage.parameters:,}", "small right faint")
        if number < len(facts.stages):
            yield arrow(f"M{middle} {y + 32}V{y + PITCH - 74}")
    yield text(middle, last + 54, f"Encoder {facts.encoder_parameters:,}", "name encoder-ink")


def draw_decoder(facts: ModelFacts) -> Iterator[str]:
    """A projection for every map, all enlarged to the finest and added up."""
    rows = [FIRST_ROW + PITCH * number for number in range(len(facts.stages))]
    left, right, top = MLP[0] - 10, WIDTH - 8, FIRST_ROW - 82
    yield rect(left, top, right - left, rows[-1] - top + 74, "decoder", 12)
    for y, stage in zip(rows, facts.stages, strict=True):
        between = (sum(STAGE) + 10 + left) / 2
        yield arrow(f"M{sum(STAGE)} {y}H{MLP[0] - 2}")
        yield text(between, y - 16, shape(stage.features), "small")
        yield feature_map(between, y + 10, stage.features)
        yield rect(MLP[0], y - 24, MLP[1], 48, "decoder-box", 8)
        yield text(MLP[0] + MLP[1] / 2, y, "MLP Layer", "name decoder-ink")
        between = (sum(MLP) + TRUNK - 10) / 2
        yield text(between, y - 16, shape(stage.projected), "small")
        factor = stage.enlarged[1] // stage.projected[1]
        if factor > 1:
            yield text(between, y + 18, f"UpSample {TIMES}{factor}", "small faint")
        yield arrow(f"M{sum(MLP)} {y}H{TRUNK}V{y - PITCH + 12}" if y == rows[-1] else f"M{sum(MLP)} {y}H{TRUNK - 12}")
    for y in rows[:-1]:
        yield arrow(f"M{TRUNK} {y - 10}V{y - PITCH + 12 if y > rows[0] else top + 52}")
        yield plus(TRUNK, y)
    yield text((left + right) / 2, rows[-1] + 54, f"Decoder {facts.decoder_parameters:,}", "name decoder-ink")
    yield from draw_head(facts, top + 8)


def draw_head(facts: ModelFacts, top: float) -> Iterator[str]:
    """From the sum of the maps to a class for every pixel."""
    left, width = WIDTH - sum(STAGE), STAGE[1]
    middle = left + width / 2
    yield rect(left, top, width, 42, "decoder-box", 8)
    yield text(middle, top + 21, "BatchNorm, ReLU, MLP", "small name decoder-ink")
    yield arrow(f"M{middle} {top}V{SCENE_TOP + SCENE_HEIGHT + 6}")
    yield text(middle - 12, FIRST_ROW - 106, shape(facts.logits), "small right")
    yield text(middle + 12, FIRST_ROW - 106, "argmax", "small left faint")


def draw_block() -> Iterator[str]:
    """What a transformer block is made of."""
    top = HEIGHT - 126
    x, y = 24.0, top + 84
    yield rect(8, top, WIDTH - 16, 118, "block", 12)
    yield text(x, top + 22, "Transformer Block", "name left encoder-ink")
    yield arrow(f"M{x} {y}H{WIDTH - 22}")
    for name, width in (("Efficient Self-Attn", 188), ("Mix-FFN", 100)):
        yield arrow(f"M{x + 8} {y}V{y - 34}H{x + width + 124}V{y - 12}")
        x += 22
        yield rect(x, y - 19, 46, 38, "block-box", 8)
        yield text(x + 23, y, "LN", "small")
        x += 60
        yield rect(x, y - 19, width, 38, "block-box", 8)
        yield text(x + width / 2, y, name, "small name")
        x += width + 42
        yield plus(x, y)
        x += 12


# Pieces


def shape(sizes: Sequence[int]) -> str:
    """C x H x W, as a label."""
    return TIMES.join(map(str, sizes))


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'


def arrow(path: str) -> str:
    return f'<path class="line" d="{path}" marker-end="url(#head)"/>'


def plus(x: float, y: float) -> str:
    """A sum, where lines meet."""
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="10" class="block-box"/><path class="line" d="M{x - 5:g} {y}h10m-5 -5v10"/>'
    )


def feature_map(x: float, top: float, sizes: Sequence[int]) -> str:
    """Sheets as large as the map, and more of them the more channels it has."""
    channels, side = sizes[0], sizes[1] * 40 / 128
    sheets, gap = round(math.log2(channels)) - 3, 1.5 + side / 24
    left = x - (side + gap * (sheets - 1)) / 2
    return "".join(
        rect(left + gap * n, top + gap * (sheets - 1 - n), side, side, "map", 1) for n in reversed(range(sheets))
    )


_SCENE: list[tuple[str, str, str]] = [  # class, its colour in the photo, and where it is
    ("sky", "#b9dcf5", "M0 0H236V144H0z"),
    ("mountain", "#8fa5b8", "M0 78L38 40L70 66L112 28L160 74L196 50L236 82V110H0z"),
    ("building", "#c9a48c", "M132 34H190V112H132z"),
    ("building", "#b58f7d", "M186 54H228V112H186z"),
    ("grass", "#8fbf6c", "M0 96Q60 86 132 98T236 96V144H0z"),
    ("road", "#8b8f97", "M0 144V124Q120 106 236 112V144z"),
    ("tree", "#7a5c43", "M46 78H54V112H46z"),
    ("tree", "#5f9a50", "M50 30C72 26 84 48 74 62C82 78 62 90 50 84C36 90 20 78 27 62C18 46 30 28 50 30z"),
    ("person", "#c4524a", "M104 88a5 5 0 1 1 8 0l4 4v16h-4v16h-3v-14h-2v14h-3v-16h-4v-16z"),
    ("car", "#3f6fb5", "M150 118l8 -12h28l10 12h10q4 0 4 5v7h-72v-7q0 -5 4 -5z"),
]
_DETAILS = (  # of the photo only: windows, wheels
    '<path fill="#7d6455" d="M140 44h8v10h-8zM156 44h8v10h-8zM172 44h8v10h-8zM140 64h8v10h-8zM156 64h8v10h-8z'
    'M172 64h8v10h-8zM194 64h8v9h-8zM210 64h8v9h-8zM194 82h8v9h-8zM210 82h8v9h-8zM140 84h8v10h-8zM156 84h8v10h-8z"/>'
    '<path fill="#dbe9f5" d="M160 116l5 -7h8v7zM176 109h8l5 7h-13z"/>'
    '<g fill="#2b2f36"><circle cx="153" cy="130" r="6"/><circle cx="194" cy="130" r="6"/></g>'
)


def scene(x: float, y: float, width: float, height: float, classes: bool) -> str:
    """A street as a photo, or in the colours of its classes."""
    colours = palette(len(CLASS_NAMES))
    shapes = []
    for name, colour, path in _SCENE:
        official = "#" + bytes(colours[CLASS_NAMES.index(name)].tolist()).hex()
        shapes.append(f'<path fill="{official if classes else colour}" d="{path}"/>')
    clip = f'<clipPath id="scene-{classes:d}"><rect width="{width:g}" height="{height:g}" rx="10"/></clipPath>'
    drawn = "".join(shapes) + ("" if classes else _DETAILS)
    return f'<g transform="translate({x:g} {y:g})">{clip}<g clip-path="url(#scene-{classes:d})">{drawn}</g></g>'


def main() -> None:
    """Write the picture."""
    (DOCS / "architecture.svg").write_text(draw(measure()), encoding="utf-8")


if __name__ == "__main__":
    main()
