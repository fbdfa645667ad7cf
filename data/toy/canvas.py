"""What toy scenes are painted with: classes and their colours, shapes, textures, a canvas that keeps the labels.

Shapes are polygons in unit coordinates, (0, 0) top left and (1, 1) bottom right, so that a scene and the grain of its
textures keep their proportions at any size in pixels. Scenes are painted from back to front; what comes later hides
what came before.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Points = Sequence[tuple[float, float]]
Texture = Callable[[Array, Array, np.random.Generator], Array]  # x (1, w), y (h, 1) -> share of ink in [0, 1], (h, w)

MASK_OVERSAMPLING = 3


class ToyClass(NamedTuple):
    """A class of SceneParse150: its 0-based id, the hue it leans to, the share of its objects that do, its ranges."""

    class_id: int
    hue: float = 0.0
    leaning: float = 0.0
    saturation: tuple[float, float] = (0.1, 0.6)
    brightness: tuple[float, float] = (0.35, 0.9)


TOY_CLASSES = {
    "wall": ToyClass(0, saturation=(0.05, 0.45), brightness=(0.5, 0.95)),
    "building": ToyClass(1),
    "sky": ToyClass(2, hue=0.58, leaning=0.8, brightness=(0.6, 0.95)),
    "floor": ToyClass(3, hue=0.08, leaning=0.6),
    "tree": ToyClass(4, hue=0.30, leaning=0.65),
    "ceiling": ToyClass(5, saturation=(0.0, 0.3), brightness=(0.5, 0.95)),
    "road": ToyClass(6, saturation=(0.0, 0.25)),
    "bed": ToyClass(7),
    "windowpane": ToyClass(8, hue=0.55, leaning=0.6, brightness=(0.5, 0.95)),
    "grass": ToyClass(9, hue=0.26, leaning=0.7),
    "cabinet": ToyClass(10, hue=0.08, leaning=0.3),
    "sidewalk": ToyClass(11, saturation=(0.0, 0.35)),
    "person": ToyClass(12),
    "door": ToyClass(14, hue=0.07, leaning=0.3),
    "table": ToyClass(15, hue=0.08, leaning=0.5),
    "mountain": ToyClass(16, hue=0.65, leaning=0.4, saturation=(0.05, 0.4)),
    "curtain": ToyClass(18),
    "chair": ToyClass(19),
    "car": ToyClass(20),
    "water": ToyClass(21, hue=0.54, leaning=0.7),
    "painting": ToyClass(22),
    "sofa": ToyClass(23),
    "rug": ToyClass(28),
    "fence": ToyClass(32, saturation=(0.0, 0.5)),
    "lamp": ToyClass(36, hue=0.13, leaning=0.6, brightness=(0.6, 0.95)),
    "bookcase": ToyClass(62, hue=0.07, leaning=0.3),
}
OTHER = "other"  # raw value 0: ignored by loss and metric


class ToyScene(NamedTuple):
    """An image (RGB), its raw label map (L) of the same size, and its position in ``SCENE_CATEGORIES``."""

    image: Image.Image
    annotation: Image.Image
    scene_category: int


# Shapes


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def trapezoid(x: float, top: float, top_width: float, bottom: float, bottom_width: float) -> Points:
    a, b = top_width / 2, bottom_width / 2
    return [(x - a, top), (x + a, top), (x + b, bottom), (x - b, bottom)]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, bumps: Sequence[float] = (1.0,) * 28) -> Points:
    """An ellipse around (x, y); ``bumps`` scale its radius on the way round, for a crown of leaves or a rock."""
    angles = [2 * math.pi * step / len(bumps) for step in range(len(bumps))]
    rim = zip(angles, bumps, strict=True)
    return [(x + radius_x * bump * math.cos(angle), y + radius_y * bump * math.sin(angle)) for angle, bump in rim]


# Textures


def noise(x: Array, y: Array, rng: np.random.Generator, period_x: float, period_y: float) -> Array:
    """Smooth noise in about [0, 1]: a random lattice with the given spacing, enlarged to the pixels of the region."""
    cells_x = 2 + int((x[0, -1] - x[0, 0]) / period_x)
    cells_y = 2 + int((y[-1, 0] - y[0, 0]) / period_y)
    lattice = Image.fromarray(rng.random((cells_y, cells_x), dtype=np.float32))
    return np.asarray(lattice.resize((x.shape[1], y.shape[0]), Image.Resampling.BICUBIC))


def in_band(position: Array, share: float) -> Array:
    """1 in the first ``share`` of each unit of ``position``, 0 in the rest."""
    return (position % 1.0 < share).astype(np.float32)


def clumps(period_x: float, period_y: float, gain: float = 1.0, offset: float = 0.0) -> Texture:
    """Noise, steeper with ``gain`` and darker with a negative ``offset``; unequal periods make streaks."""
    return lambda x, y, rng: np.clip(gain * noise(x, y, rng, period_x, period_y) + offset, 0, 1)


def stripes(period: float, share: float, along_x: float, along_y: float) -> Texture:
    return lambda x, y, rng: in_band((along_x * (x - x[0, 0]) + along_y * (y - y[0, 0])) / period, share)


def grid(width: float, height: float, joint: float, tone: float, shift: float = 0.0, slant: float = 0.0) -> Texture:
    """Cells of random tones up to ``tone``, between joints of full ink; ``shift`` moves each row against the last."""

    def texture(x: Array, y: Array, rng: np.random.Generator) -> Array:
        x, y = x - x[0, 0], y - y[0, 0]
        row = (y - slant * x) / height
        column = (x + slant * y) / width + shift * np.floor(row)
        cell = (np.floor(column).astype(np.int64) * 73 + np.floor(row).astype(np.int64) * 179) % 509
        tones = tone * rng.random(509)[cell]
        in_joint = np.maximum(in_band(column, joint), in_band(row, joint * width / height))
        return np.where(in_joint > 0, 1.0, tones)

    return texture


def tufts(x: Array, y: Array, rng: np.random.Generator) -> Array:
    row = y / 0.055
    column = x / 0.06 + 0.5 * (np.floor(row) % 2)
    return ((column % 1 - 0.5) ** 2 + (row % 1 - 0.5) ** 2 < 0.07).astype(np.float32)


def checks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return in_band((np.floor(x / 0.09) + np.floor(y / 0.09)) / 2, 0.25)


def folds(x: Array, y: Array, rng: np.random.Generator) -> Array:
    phase = (x + 0.006 * np.sin(9 * y)) / 0.042
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * phase))


def facets(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return 2 * np.abs((x + 0.5 * y + 0.12 * noise(x, y, rng, 0.1, 0.1)) / 0.17 % 1 - 0.5)


def grain(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return 0.5 * rng.random((y.shape[0], x.shape[1]), dtype=np.float32)


def fade_down(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return np.repeat(np.linspace(0, 1, y.shape[0], dtype=np.float32)[:, None], x.shape[1], axis=1)


def soft_spot(x: Array, y: Array, rng: np.random.Generator) -> Array:
    across, down = np.linspace(-1, 1, x.shape[1])[None, :], np.linspace(-1, 1, y.shape[0])[:, None]
    return np.clip(1 - across**2 - down**2, 0, 1)


plain = clumps(0.2, 0.2, 0.3)
wood = clumps(0.35, 0.025)
splashes = clumps(0.06, 0.06, 1.8, -0.4)
clouds = clumps(0.3, 0.1, 2.5, -1.3)
foliage = clumps(0.03, 0.03, 2.5, -0.75)
blades = clumps(0.018, 0.08, 1.8, -0.4)
ripples = clumps(0.12, 0.022, 2.0, -0.5)
slats = stripes(0.05, 0.45, 0, 1)
pickets = stripes(0.055, 0.6, 1, 0)
glare = stripes(0.16, 0.35, 1, 1)
tiles = grid(0.14, 0.14, 0.16, 0.35)
coffers = grid(0.3, 0.3, 0.1, 0.0)
planks = grid(0.13, 0.6, 0.12, 0.6)
patchwork = grid(0.07, 0.07, 0.15, 0.7, slant=1.0)
facade = grid(0.075, 0.09, 0.4, 0.35)
books = grid(0.04, 0.12, 0.25, 0.8, shift=0.3)


def in_perspective(texture: Texture, horizon: float) -> Texture:
    """The texture laid on a ground or ceiling that recedes to ``horizon``; true to scale at the edge of the image."""

    def projected(x: Array, y: Array, rng: np.random.Generator) -> Array:
        depth = max(horizon, 1 - horizon) / np.maximum(np.abs(y - horizon), 0.06)
        return texture((x - 0.5) * depth, depth, rng)

    return projected


# Canvas


class Colours(NamedTuple):
    """An object's two colours, RGB in 0..255: the ground it is filled with and the ink of its texture."""

    ground: Array
    ink: Array

    def scaled(self, factor: float) -> Colours:
        return Colours(self.ground * factor, self.ink * factor)


class Canvas:
    """A scene being painted: float pixels (H, W, 3), raw labels (H, W), the scene's hues and its random numbers."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.hues = (rng.random() + np.array([0.0, 0.07, 0.33, 0.5, 0.58])) % 1.0

    def vary(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def some(self, probability: float, *places: tuple[float, float]) -> list[float]:
        """One position within each of the ranges that the dice allow."""
        return [self.vary(low, high) for low, high in places if self.chance(probability)]

    def colours(self, name: str) -> Colours:
        """Two colours for a new object: the hue from the class's prior or from the scene, the rest drawn at random."""
        style = TOY_CLASSES[name]
        hue = style.hue if self.chance(style.leaning) else float(self.rng.choice(self.hues))
        hue = hue + float(self.rng.normal(0, 0.04))
        saturation, brightness = self.vary(*style.saturation), self.vary(*style.brightness)
        contrast = self.vary(0.22, 0.38) * (1 if brightness < 0.5 else -1)
        ground = colorsys.hsv_to_rgb(hue % 1.0, saturation, brightness)
        ink = colorsys.hsv_to_rgb((hue + self.vary(-0.06, 0.06)) % 1.0, saturation, brightness + contrast)
        return Colours(255 * np.array(ground, np.float32), 255 * np.array(ink, np.float32))

    def paint(self, name: str, points: Points, texture: Texture = plain, colours: Colours | None = None) -> None:
        """Fill a polygon with an object of the named class, a little lighter at its top than at its foot."""
        region, alpha = self._mask(points)
        if alpha.size == 0:
            return
        ground, ink = colours or self.colours("rug" if name == OTHER else name)
        light = np.linspace(1.08, 0.92, alpha.shape[0], dtype=np.float32)[:, None, None]
        colour = (ground + texture(*self._coordinates(region), self.rng)[..., None] * (ink - ground)) * light
        self.pixels[region] += alpha[..., None] * (colour - self.pixels[region])
        self.labels[region][alpha >= 0.5] = 0 if name == OTHER else TOY_CLASSES[name].class_id + 1

    def glaze(self, points: Points, colour: Sequence[float], opacity: float, texture: Texture | None = None) -> None:
        """Tint a polygon and leave the labels as they are: shadows, glow, snow, glass, marks on the road."""
        region, alpha = self._mask(points)
        if alpha.size == 0:
            return
        if texture is not None:
            alpha = alpha * texture(*self._coordinates(region), self.rng)
        self.pixels[region] += opacity * alpha[..., None] * (np.asarray(colour, np.float32) - self.pixels[region])

    def shadow(self, x: float, y: float, radius_x: float, radius_y: float) -> None:
        self.glaze(box(x - radius_x, y - radius_y, x + radius_x, y + radius_y), (0, 0, 0), 0.6, soft_spot)

    def finish(self, scene_category: int) -> ToyScene:
        """Light, colour cast and noise over the whole picture, then 8 bits."""
        x, y = self._coordinates((slice(0, self.height), slice(0, self.width)))
        angle, slope = self.vary(0, 2 * math.pi), self.vary(0.0, 0.5)
        light = self.vary(0.85, 1.15) + slope * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
        cast = self.rng.uniform(0.88, 1.12, 3).astype(np.float32)
        film = self.rng.standard_normal((self.height, self.width, 1), dtype=np.float32) * self.vary(3, 9)
        pixels = np.clip(self.pixels * light[..., None] * cast + film, 0, 255).astype(np.uint8)
        return ToyScene(Image.fromarray(pixels), Image.fromarray(self.labels), scene_category)

    def _coordinates(self, region: tuple[slice, slice]) -> tuple[Array, Array]:
        rows, columns = region
        x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / self.width
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / self.height
        return x[None, :], y[:, None]

    def _mask(self, points: Points) -> tuple[tuple[slice, slice], Array]:
        """The rectangle of pixels around a polygon, and the share of each that the polygon covers."""
        corners = np.asarray(points) * (self.width, self.height)
        left, top = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(corners.max(axis=0)), (self.width, self.height)).astype(int).tolist()
        region = slice(top, bottom), slice(left, right)
        if right <= left or bottom <= top:  # wholly outside the picture
            return region, np.zeros((0, 0), np.float32)
        fine = Image.new("L", ((right - left) * MASK_OVERSAMPLING, (bottom - top) * MASK_OVERSAMPLING))
        outline = ((corners - (left, top)) * MASK_OVERSAMPLING - 0.5).ravel().tolist()
        ImageDraw.Draw(fine).polygon(outline, fill=255)
        return region, np.asarray(fine.reduce(MASK_OVERSAMPLING), np.float32) / 255
