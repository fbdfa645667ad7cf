"""A drawn stand-in for SceneParse150: stylised rooms and streets with exact label maps, made without a network.

The scenes let ``train.py`` show a model learning where the real photographs cannot be had. They keep the data's own
form, rows of JPEG and PNG bytes with raw values 0 for "other" and k + 1 for class k, so that everything downstream runs
as it does on ADE20K.

Colour is unreliable on purpose. A scene draws one small set of hues and every object picks from it, with soft priors
only (skies lean to blue, leaves to green); then come a colour cast, a gradient of light, shadows and noise. What names
an object is its texture, its shape and its place, and those take a network that looks around: the nearest mean colour
of a class is a poor guess.

Shapes are polygons in unit coordinates, (0, 0) top left and (1, 1) bottom right, so that a scene and the grain of its
textures keep their proportions at any size in pixels. Scenes are painted from back to front; what comes later hides
what came before.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Points = Sequence[tuple[float, float]]
Texture = Callable[[Array, Array, np.random.Generator], Array]  # x (1, w), y (h, 1) -> share of ink in [0, 1], (h, w)

TOY_SPLITS = {"train": 800, "validation": 80}
TOY_SEED = 0
VERSION = 1
IMAGE_SIDES = (160, 256)
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


def paint_clutter(canvas: Canvas, low: float, high: float) -> None:
    """Things nobody labelled, on the ground between two heights."""
    for _ in range(int(canvas.rng.integers(1, 4))):
        x, y, radius = canvas.vary(0, 1), canvas.vary(low, high), canvas.vary(0.03, 0.07)
        canvas.shadow(x, y + radius, radius * 1.6, radius * 0.6)
        canvas.paint(OTHER, ellipse(x, y, radius, radius, canvas.rng.uniform(0.8, 1.1, 14).tolist()))


# Rooms


class Room(NamedTuple):
    """The back wall of a room, and the height of the eye that looks at it."""

    left: float
    top: float
    right: float
    bottom: float
    horizon: float


def paint_room(canvas: Canvas) -> Room:
    """Ceiling, floor, three walls, and two or three different things along the back wall."""
    room = Room(
        left=canvas.vary(0.03, 0.12),
        top=canvas.vary(0.13, 0.2),
        right=canvas.vary(0.88, 0.97),
        bottom=canvas.vary(0.6, 0.68),
        horizon=canvas.vary(0.35, 0.42),
    )
    left, top, right, bottom, horizon = room
    canvas.paint("ceiling", box(0, 0, 1, top), in_perspective(coffers, horizon))
    canvas.paint("floor", box(0, bottom, 1, 1), in_perspective(planks, horizon))
    wall = canvas.colours("wall")
    canvas.paint("wall", box(left, top, right, bottom), plain, wall)
    canvas.paint("wall", [(0, 0), (left, top), (left, bottom), (0, bottom + 1.2 * left)], plain, wall.scaled(0.8))
    near = bottom + 1.2 * (1 - right)
    canvas.paint("wall", [(1, 0), (right, top), (right, bottom), (1, near)], plain, wall.scaled(0.7))
    chosen = canvas.rng.permutation(len(WALL_ITEMS))[: 2 + canvas.chance(0.6)].tolist()
    shares = [WALL_ITEMS[item][1] for item in chosen]
    for item, share in zip(chosen, shares, strict=True):
        width = (right - room.left) * share / sum(shares)
        WALL_ITEMS[item][0](canvas, room, left + canvas.vary(0.015, 0.035), left + width - canvas.vary(0.015, 0.035))
        left += width
    return room


def paint_window(canvas: Canvas, room: Room, left: float, right: float) -> None:
    """Four panes between two curtains."""
    top, bottom = room.top + canvas.vary(0.03, 0.08), room.bottom - canvas.vary(0.06, 0.14)
    frame, glass, cloth = (canvas.colours(name) for name in ("windowpane", "windowpane", "curtain"))
    width, height = (right - left) / 2, (bottom - top) / 2
    canvas.paint("windowpane", box(left, top, right, bottom), plain, frame)
    for x in (left, left + width):
        for y in (top, top + height):
            canvas.paint("windowpane", box(x + 0.008, y + 0.012, x + width - 0.008, y + height - 0.012), glare, glass)
    drape = max(0.075, canvas.vary(0.24, 0.3) * (right - left))
    canvas.paint("curtain", box(left - 0.015, top - 0.03, left + drape, room.bottom), folds, cloth)
    canvas.paint("curtain", box(right - drape, top - 0.03, right + 0.015, room.bottom), folds, cloth)


def paint_door(canvas: Canvas, room: Room, left: float, right: float) -> None:
    """Two sunken panels in a frame, and a knob."""
    x, width, top = (left + right) / 2, min(right - left, canvas.vary(0.18, 0.23)), room.top + canvas.vary(0.05, 0.1)
    middle, colours = (top + room.bottom) / 2, canvas.colours("door")
    canvas.paint("door", trapezoid(x, top, width, room.bottom + 0.005, width), wood, colours)
    for y, foot in ((top + 0.04, middle - 0.02), (middle + 0.02, room.bottom - 0.03)):
        canvas.paint("door", trapezoid(x, y, width - 0.08, foot, width - 0.08), fade_down, colours.scaled(0.65))
    canvas.glaze(ellipse(x + width / 2 - 0.022, middle, 0.014, 0.016), (250, 235, 170), 0.9)


def paint_painting(canvas: Canvas, room: Room, left: float, right: float) -> None:
    """Splashes around one round spot, in a wooden frame."""
    top = room.top + canvas.vary(0.04, 0.08)
    bottom = top + canvas.vary(0.19, 0.26)
    canvas.paint("painting", box(left, top, right, bottom), wood)
    canvas.paint("painting", box(left + 0.025, top + 0.025, right - 0.025, bottom - 0.025), splashes)
    spot = ellipse((left + right) / 2, (top + bottom) / 2, 0.05, 0.05)
    canvas.glaze(spot, canvas.colours("painting").ink.tolist(), 0.9)


def paint_cabinet(canvas: Canvas, room: Room, left: float, right: float) -> None:
    """Two columns of drawers, each with a bright knob."""
    top, bottom, colours = room.bottom - canvas.vary(0.26, 0.36), room.bottom + 0.03, canvas.colours("cabinet")
    canvas.paint("cabinet", box(left, top, right, bottom), plain, colours.scaled(0.7))
    width, height = (right - left) / 2, (bottom - top) / 3
    for x in (left, left + width):
        for y in (top, top + height, top + 2 * height):
            canvas.paint("cabinet", box(x + 0.01, y + 0.012, x + width - 0.01, y + height - 0.012), fade_down, colours)
            canvas.glaze(ellipse(x + width / 2, y + height / 2, 0.016, 0.018), (250, 235, 170), 0.9)


def paint_bookcase(canvas: Canvas, room: Room, left: float, right: float) -> None:
    top, bottom = room.top + canvas.vary(0.04, 0.1), room.bottom + 0.02
    canvas.paint("bookcase", box(left, top, right, bottom))
    canvas.paint("bookcase", box(left + 0.015, top + 0.02, right - 0.015, bottom - 0.02), books)


WALL_ITEMS: tuple[
    tuple[Callable[[Canvas, Room, float, float], None], float], ...
] = (  # with the share of wall each wants
    (paint_window, 1.7),
    (paint_door, 0.9),
    (paint_painting, 0.9),
    (paint_cabinet, 1.1),
    (paint_bookcase, 1.0),
)


def paint_rug(canvas: Canvas, room: Room) -> None:
    x, width, colours = canvas.vary(0.35, 0.65), canvas.vary(0.55, 0.8), canvas.colours("rug")
    top, bottom = room.bottom + canvas.vary(0.08, 0.13), canvas.vary(0.95, 1.0)
    canvas.paint("rug", trapezoid(x, top, width * 0.8, bottom, width), plain, colours.scaled(0.8))
    inner = trapezoid(x, top + 0.02, width * 0.8 - 0.06, bottom - 0.025, width - 0.07)
    canvas.paint("rug", inner, in_perspective(checks, room.horizon), colours)


def paint_bed(canvas: Canvas, room: Room) -> None:
    """Headboard, two pillows, and a quilt that falls over the foot."""
    x, width, foot = canvas.vary(0.3, 0.7), canvas.vary(0.4, 0.55), canvas.vary(0.82, 0.9)
    quilt, linen, top = canvas.colours("bed"), canvas.colours("bed"), room.bottom - 0.02
    canvas.shadow(x, foot, width * 0.75, 0.1)
    canvas.paint("bed", trapezoid(x, top - canvas.vary(0.1, 0.16), width, room.bottom + 0.06, width), wood)
    canvas.paint("bed", trapezoid(x, top, width, foot, width * 1.25), patchwork, quilt)
    canvas.paint("bed", trapezoid(x, foot, width * 1.25, foot + 0.06, width * 1.22), patchwork, quilt.scaled(0.65))
    for side in (-1, 1):
        canvas.paint("bed", ellipse(x + side * width / 4, top + 0.01, width * 0.21, 0.045), fade_down, linen)


def paint_sofa(canvas: Canvas, room: Room) -> None:
    """A tufted back and seat between two plain arms."""
    x, half, base = canvas.vary(0.33, 0.67), canvas.vary(0.24, 0.31), room.bottom + canvas.vary(0.1, 0.17)
    colours = canvas.colours("sofa")
    canvas.shadow(x, base, half * 1.3, 0.07)
    canvas.paint("sofa", box(x - half + 0.03, base - 0.3, x + half - 0.03, base - 0.05), tufts, colours)
    canvas.paint("sofa", box(x - half, base - 0.13, x + half, base), tufts, colours.scaled(0.8))
    for arm in (x - half + 0.03, x + half - 0.03):
        canvas.paint("sofa", ellipse(arm, base - 0.18, 0.055, 0.05), plain, colours)
        canvas.paint("sofa", box(arm - 0.045, base - 0.18, arm + 0.045, base), plain, colours.scaled(0.9))


def paint_table(canvas: Canvas, x: float, width: float, top: float, base: float) -> None:
    colours = canvas.colours("table")
    canvas.shadow(x, base, width * 0.6, 0.06)
    for leg in (x - width / 2 + 0.045, x + width / 2 - 0.045):
        canvas.paint("table", box(leg - 0.03, top, leg + 0.03, base), wood, colours.scaled(0.7))
    canvas.paint("table", trapezoid(x, top + 0.08, width, top + 0.14, width), wood, colours.scaled(0.75))
    canvas.paint("table", trapezoid(x, top, width * 0.82, top + 0.085, width), wood, colours)


def paint_chair(canvas: Canvas, x: float, base: float) -> None:
    """A chair from behind: a slatted back above a seat and two stout legs."""
    half, colours = canvas.vary(0.085, 0.105), canvas.colours("chair")
    canvas.shadow(x, base, half * 1.5, 0.04)
    for leg in (x - half + 0.02, x + half - 0.02):
        canvas.paint("chair", box(leg - 0.022, base - 0.14, leg + 0.022, base), plain, colours.scaled(0.75))
    canvas.paint("chair", box(x - half, base - 0.34, x + half, base - 0.13), slats, colours)
    canvas.paint("chair", trapezoid(x, base - 0.15, 2 * half, base - 0.09, 2 * half + 0.03), plain, colours)


def paint_lamp(canvas: Canvas, x: float, top: float, base: float | None = None) -> None:
    """A glowing shade: on a stem that stands at ``base``, or on a cord from the ceiling."""
    height, width = canvas.vary(0.16, 0.2), canvas.vary(0.19, 0.24)
    canvas.glaze(ellipse(x, top + height / 2, 0.28, 0.28), (255, 240, 200), 0.5, soft_spot)
    if base is None:
        canvas.paint(OTHER, box(x - 0.006, 0, x + 0.006, top))
    else:
        stand = canvas.colours("lamp").scaled(0.6)
        canvas.paint("lamp", box(x - 0.025, top, x + 0.025, base), plain, stand)
        canvas.paint("lamp", ellipse(x, base, 0.075, 0.03), plain, stand)
    canvas.paint("lamp", trapezoid(x, top, width * 0.5, top + height, width), fade_down)
    canvas.glaze(ellipse(x, top + height * 0.7, width / 2, height / 2), (255, 250, 225), 0.8, soft_spot)


def paint_bedroom(canvas: Canvas) -> None:
    room = paint_room(canvas)
    if canvas.chance(0.6):
        paint_rug(canvas, room)
    paint_bed(canvas, room)
    for x in canvas.some(0.4, (0.1, 0.16), (0.84, 0.9)):
        paint_lamp(canvas, x, canvas.vary(0.32, 0.42), 0.82)


def paint_living_room(canvas: Canvas) -> None:
    room = paint_room(canvas)
    if canvas.chance(0.7):
        paint_rug(canvas, room)
    paint_sofa(canvas, room)
    for x in canvas.some(0.35, (0.1, 0.16), (0.84, 0.9)):
        paint_lamp(canvas, x, canvas.vary(0.28, 0.38), 0.8)
    if canvas.chance(0.5):
        paint_table(canvas, canvas.vary(0.3, 0.7), canvas.vary(0.34, 0.45), canvas.vary(0.71, 0.75), 0.95)
    else:
        paint_clutter(canvas, 0.85, 0.95)


def paint_dining_room(canvas: Canvas) -> None:
    room = paint_room(canvas)
    if canvas.chance(0.4):
        paint_rug(canvas, room)
    x, width, top = canvas.vary(0.4, 0.6), canvas.vary(0.5, 0.65), canvas.vary(0.58, 0.64)
    if canvas.chance(0.7):
        paint_lamp(canvas, x + canvas.vary(-0.05, 0.05), canvas.vary(0.14, 0.22))
    paint_table(canvas, x, width, top, top + canvas.vary(0.26, 0.3))
    for dx in canvas.some(0.85, (-0.62, -0.25), (0.25, 0.62)):
        paint_chair(canvas, x + dx * width, canvas.vary(0.9, 0.97))


# Outdoors


def paint_sky(canvas: Canvas, bottom: float) -> None:
    zenith = canvas.colours("sky").ground
    canvas.paint("sky", box(0, 0, 1, bottom), fade_down, Colours(zenith, 0.4 * zenith + 145))
    canvas.glaze(box(0, 0, 1, bottom), (250, 250, 250), 0.8, clouds)


def paint_mountains(canvas: Canvas, top: float, base: float) -> None:
    """A jagged ridge across the picture, with snow on its peaks."""
    corners, peaks_first = int(canvas.rng.integers(5, 9)), canvas.rng.integers(2)
    xs = np.linspace(-0.1, 1.1, corners) + canvas.rng.uniform(-0.3, 0.3, corners) / corners
    depths = 0.6 * ((np.arange(corners) + peaks_first) % 2) + canvas.rng.uniform(0.0, 0.3, corners)
    skyline = list(zip(xs.tolist(), (top + depths * (base - top)).tolist(), strict=True))
    canvas.paint("mountain", [(-0.2, base), *skyline, (1.2, base)], facets)
    for x, y in skyline[peaks_first::2]:
        snow = [(x, y), (x + 0.05, y + 0.06), (x + 0.015, y + 0.045), (x - 0.02, y + 0.07), (x - 0.05, y + 0.05)]
        canvas.glaze(snow, (245, 245, 250), 0.85)


def paint_buildings(canvas: Canvas, ground: float) -> None:
    left = canvas.vary(-0.15, 0.05)
    while left < 1:
        right, top, colours = left + canvas.vary(0.2, 0.38), canvas.vary(0.08, 0.34), canvas.colours("building")
        canvas.paint("building", box(left, top, right, ground), facade, colours)
        canvas.paint("building", box(left - 0.01, top - 0.02, right + 0.01, top + 0.015), plain, colours.scaled(0.8))
        left = right + (canvas.vary(0.05, 0.15) if canvas.chance(0.3) else 0)


def paint_tree(canvas: Canvas, x: float, base: float) -> None:
    """A trunk below a crown of three leafy clumps."""
    size, colours = canvas.vary(0.13, 0.2), canvas.colours("tree")
    crown = base - 2.1 * size
    canvas.shadow(x, base, size, 0.04)
    bark = Colours(0.3 * colours.ink + 25, 0.5 * colours.ink + 25)
    canvas.paint("tree", trapezoid(x, crown, 0.2 * size, base, 0.45 * size), folds, bark)
    for dx, dy, share in ((-0.45, 0.2, 0.75), (0.45, 0.15, 0.75), (0.0, -0.25, 0.95)):
        bumps = canvas.rng.uniform(0.82, 1.12, 28).tolist()
        leaves = ellipse(x + dx * size, crown + dy * size, share * size, share * size, bumps)
        canvas.paint("tree", leaves, foliage, colours)


def paint_fence(canvas: Canvas, left: float, right: float, base: float) -> None:
    height, colours = canvas.vary(0.13, 0.18), canvas.colours("fence")
    canvas.paint("fence", box(left, base - height, right, base), pickets, colours)
    for rail in (base - 0.8 * height, base - 0.3 * height):
        canvas.paint("fence", box(left, rail, right, rail + 0.022), plain, colours.scaled(0.75))


def paint_person(canvas: Canvas, x: float, feet: float) -> None:
    """Two legs, a striped shirt with bare arms, a head with hair."""
    height = canvas.vary(0.36, 0.48)
    half, hip, neck = 0.15 * height, feet - 0.47 * height, feet - 0.82 * height
    shirt, trousers = canvas.colours("person"), canvas.colours("person").scaled(0.7)
    skin = np.array([236, 188, 150], np.float32) * canvas.vary(0.4, 1.0)
    flesh, hair = Colours(skin, 0.9 * skin), Colours(0.3 * skin, 0.2 * skin)
    canvas.shadow(x, feet, half * 1.8, 0.03)
    for side in (-half, half):
        canvas.paint("person", trapezoid(x + 0.5 * side, hip - 0.02, 0.9 * half, feet, 0.9 * half), plain, trousers)
        arm = [(x + 0.7 * side, neck), (x + side, neck + 0.03), (x + 1.35 * side, hip), (x + 0.8 * side, hip)]
        canvas.paint("person", arm, plain, flesh)
    canvas.paint("person", trapezoid(x, neck, 1.9 * half, hip, 1.5 * half), slats, shirt)
    canvas.paint("person", ellipse(x, neck - 0.1 * height, 0.62 * half, 0.11 * height), plain, hair)
    canvas.paint("person", ellipse(x, neck - 0.07 * height, 0.52 * half, 0.08 * height), plain, flesh)


def paint_car(canvas: Canvas, x: float, base: float) -> None:
    """A car from its side: cabin with two windows, body, two wheels with hubs."""
    length, colours, round_y = canvas.vary(0.34, 0.44), canvas.colours("car"), canvas.width / canvas.height
    top, sill = base - 0.54 * length, base - 0.3 * length
    rubber = Colours(np.full(3, 25, np.float32), np.full(3, 45, np.float32))
    canvas.shadow(x, base, 0.58 * length, 0.04)
    canvas.paint("car", trapezoid(x, top, 0.42 * length, sill + 0.02, 0.74 * length), plain, colours)
    canvas.paint("car", trapezoid(x, sill, 0.86 * length, base - 0.06 * length, length), plain, colours)
    for side in (-length, length):
        window = trapezoid(x + 0.13 * side, top + 0.03 * length, 0.15 * length, sill, 0.22 * length)
        canvas.glaze(window, (40, 50, 65), 0.85)
        wheel, radius = (x + 0.28 * side, base - 0.07 * length), 0.11 * length
        canvas.paint("car", ellipse(*wheel, radius, radius * round_y), plain, rubber)
        canvas.glaze(ellipse(*wheel, radius / 2, radius / 2 * round_y), (200, 200, 205), 0.9)


def paint_street(canvas: Canvas) -> None:
    """House fronts, a pavement with trees and people, and a road across the picture."""
    pavement, kerb = canvas.vary(0.55, 0.6), canvas.vary(0.7, 0.75)
    paint_sky(canvas, pavement)
    paint_buildings(canvas, pavement)
    canvas.paint("sidewalk", box(0, pavement, 1, kerb), in_perspective(tiles, 0.3))
    canvas.paint("road", box(0, kerb, 1, 1), grain)
    canvas.glaze(box(0, kerb, 1, kerb + 0.02), (30, 30, 30), 0.5)
    start = canvas.vary(-0.2, 0)
    for dash in range(5):
        canvas.glaze(trapezoid(start + 0.3 * dash, 0.86, 0.15, 0.895, 0.16), (245, 240, 225), 0.85)
    for x in canvas.some(0.6, (0.05, 0.4), (0.6, 0.95)):
        paint_tree(canvas, x, canvas.vary(pavement + 0.03, kerb - 0.03))
    for x in canvas.some(0.5, (0.1, 0.45), (0.55, 0.9)):
        paint_person(canvas, x, canvas.vary(pavement + 0.06, kerb))
    for x in canvas.some(0.75, (0.12, 0.28), (0.7, 0.9)):
        paint_car(canvas, x, canvas.vary(0.84, 0.94))


def paint_country_road(canvas: Canvas) -> None:
    """A road that runs to the horizon between meadows."""
    horizon, far, near, width = (canvas.vary(*r) for r in ((0.44, 0.52), (0.3, 0.7), (0.3, 0.7), (0.5, 0.75)))
    paint_sky(canvas, horizon)
    if canvas.chance(0.7):
        paint_mountains(canvas, canvas.vary(0.12, 0.26), horizon)
    canvas.paint("grass", box(0, horizon, 1, 1), blades)
    road = [(far - 0.03, horizon), (far + 0.03, horizon), (near + width / 2, 1), (near - width / 2, 1)]
    canvas.paint("road", road, grain)
    for span in ((0.12, 0.25), (0.38, 0.55), (0.72, 0.97)):
        (x, y, half), (x2, y2, half2) = ((far + (near - far) * t, horizon + (1 - horizon) * t, 0.025 * t) for t in span)
        canvas.glaze([(x - half, y), (x + half, y), (x2 + half2, y2), (x2 - half2, y2)], (245, 240, 225), 0.85)
    if canvas.chance(0.6):
        left, right = (-0.05, far - 0.1) if far > 0.5 else (far + 0.1, 1.05)
        paint_fence(canvas, left, right, horizon + canvas.vary(0.08, 0.13))
    for x in canvas.some(0.6, (0.02, 0.2), (0.8, 0.98)):
        paint_tree(canvas, x, canvas.vary(0.6, 0.75))
    for x in canvas.some(0.65, (near - 0.1, near + 0.1)):
        paint_car(canvas, x, canvas.vary(0.78, 0.92))


def paint_park(canvas: Canvas) -> None:
    """A tiled path over a lawn, with trees and people."""
    horizon, near, far = canvas.vary(0.44, 0.52), canvas.vary(0.2, 0.8), canvas.vary(0.2, 0.8)
    paint_sky(canvas, horizon)
    if canvas.chance(0.5):
        paint_buildings(canvas, horizon)
    elif canvas.chance(0.5):
        paint_mountains(canvas, canvas.vary(0.15, 0.28), horizon)
    canvas.paint("grass", box(0, horizon, 1, 1), blades)
    bend, top = (near + far) / 2 + canvas.vary(-0.1, 0.1), horizon + 0.05
    right_side = [(far + 0.06, top), (bend + 0.14, 0.73), (near + 0.27, 1.0)]
    left_side = [(near - 0.27, 1.0), (bend - 0.14, 0.73), (far - 0.06, top)]
    canvas.paint("sidewalk", right_side + left_side, in_perspective(tiles, 0.3))
    for x in canvas.some(0.65, (-0.1, 0.4)):
        paint_fence(canvas, x, x + canvas.vary(0.45, 0.75), horizon + canvas.vary(0.06, 0.14))
    for x in canvas.some(0.5, (0.0, 0.3), (0.35, 0.65), (0.7, 1.0)):
        paint_tree(canvas, x, canvas.vary(0.6, 0.78))
    paint_clutter(canvas, 0.8, 0.95)
    for x in canvas.some(0.6, (0.1, 0.45), (0.55, 0.9)):
        paint_person(canvas, x, canvas.vary(0.75, 0.95))


def paint_lakeside(canvas: Canvas) -> None:
    """Mountains beyond the water, a grassy shore in front."""
    horizon, shore, tilt = canvas.vary(0.4, 0.48), canvas.vary(0.7, 0.78), canvas.vary(-0.08, 0.08)
    paint_sky(canvas, horizon)
    if canvas.chance(0.85):
        paint_mountains(canvas, canvas.vary(0.08, 0.22), horizon)
    canvas.paint("water", box(0, horizon, 1, 1), ripples)
    bank = [(-0.1, shore + tilt), (0.3, shore + canvas.vary(0, 0.06)), (0.7, shore), (1.1, shore - tilt)]
    canvas.paint("grass", [*bank, (1.1, 1.1), (-0.1, 1.1)], blades)
    for x in canvas.some(0.4, (-0.1, 0.4)):
        paint_fence(canvas, x, x + canvas.vary(0.45, 0.75), shore + canvas.vary(0.08, 0.12))
    for x in canvas.some(0.55, (0.0, 0.25), (0.75, 1.0)):
        paint_tree(canvas, x, canvas.vary(0.8, 0.9))
    paint_clutter(canvas, 0.86, 0.96)
    for x in canvas.some(0.5, (0.25, 0.75)):
        paint_person(canvas, x, canvas.vary(0.86, 0.97))


# The data set

SCENE_PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "bedroom": paint_bedroom,
    "living_room": paint_living_room,
    "dining_room": paint_dining_room,
    "street": paint_street,
    "country_road": paint_country_road,
    "park": paint_park,
    "lakeside": paint_lakeside,
}
SCENE_CATEGORIES: tuple[str, ...] = tuple(SCENE_PAINTERS)


def toy_scene(index: int, seed: int, split: str = "train") -> ToyScene:
    """Scene ``index`` of a split: equal arguments give equal pixels, and no scene depends on another.

    Categories take turns, so that even a small split holds every class. ValueError for an unknown split.
    """
    rng = np.random.default_rng((seed, _split_number(split), index))
    width, height = rng.integers(IMAGE_SIDES[0], IMAGE_SIDES[1], 2, endpoint=True).tolist()
    canvas = Canvas(rng, width, height)
    scene_category = index % len(SCENE_CATEGORIES)
    SCENE_PAINTERS[SCENE_CATEGORIES[scene_category]](canvas)
    return canvas.finish(scene_category)


def toy_rows(split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, in the form of the real shards: encoded image, encoded annotation, scene category.

    ValueError for an unknown split.
    """
    _split_number(split)  # a generator would complain only when its first row is asked for
    return (_row(split, index) for index in range(TOY_SPLITS[split]))


def _split_number(split: str) -> int:
    if split not in TOY_SPLITS:
        raise ValueError(f"no toy split {split!r}; there are {', '.join(TOY_SPLITS)}")
    return list(TOY_SPLITS).index(split)


def _row(split: str, index: int) -> dict[str, Any]:
    scene = toy_scene(index, TOY_SEED, split)
    image, annotation = io.BytesIO(), io.BytesIO()
    scene.image.save(image, "JPEG", quality=90)
    scene.annotation.save(annotation, "PNG", compress_level=1)
    name = f"toy_{split}_{index + 1:08d}"
    return {
        "image": {"bytes": image.getvalue(), "path": f"{name}.jpg"},
        "annotation": {"bytes": annotation.getvalue(), "path": f"{name}.png"},
        "scene_category": scene.scene_category,
    }
