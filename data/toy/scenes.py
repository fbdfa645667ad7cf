"""A drawn stand-in for SceneParse150: stylised rooms and streets with exact label maps, made without a network.

The scenes let ``train.py`` show a model learning where the real photographs cannot be had. They keep the data's own
form, rows of JPEG and PNG bytes with raw values 0 for "other" and k + 1 for class k, so that everything downstream runs
as it does on ADE20K.

Colour is unreliable on purpose. A scene draws one small set of hues and every object picks from it, with soft priors
only (skies lean to blue, leaves to green); then come a colour cast, a gradient of light, shadows and noise. What names
an object is its texture, its shape and its place, and those take a network that looks around: the nearest mean colour
of a class is a poor guess.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data.toy.canvas import (
    OTHER,
    Canvas,
    Colours,
    ToyScene,
    blades,
    books,
    box,
    checks,
    clouds,
    coffers,
    ellipse,
    facade,
    facets,
    fade_down,
    folds,
    foliage,
    glare,
    grain,
    in_perspective,
    patchwork,
    pickets,
    plain,
    planks,
    ripples,
    slats,
    soft_spot,
    splashes,
    tiles,
    trapezoid,
    tufts,
    wood,
)

TOY_SPLITS = {"train": 800, "validation": 80}
TOY_SEED = 0
VERSION = 1
IMAGE_SIDES = (160, 256)


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
