"""The one reader of photos: what a viewer shows, or a refusal in one line that says what to do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from segformer.photos import as_photo, decode_photo, open_photo


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def pixels(bands: int = 3, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(bands).integers(0, np.iinfo(kind).max, (6, 9, bands), kind, endpoint=True)


def tiff(values: np.ndarray, photometric: int = 2, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed TIFF of (H, W, bands), which Pillow would not write."""
    height, width, bands = values.shape
    bits = [8 * values.itemsize] * bands
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = [
        (256, [width]), (257, [height]), (258, bits), (259, [1]), (262, [photometric]), (273, [8]), (277, [bands]),
        (278, [height]), (279, [values.nbytes]), (284, [1]), (338, list(extra)),
        (339, [kinds[values.dtype.kind]] * bands),
    ]  # fmt: skip
    entries = [(tag, numbers) for tag, numbers in entries if numbers]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    directory, beyond = b"", b""
    after = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, numbers in entries:
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            directory += struct.pack("<HHII", tag, 4, len(numbers), after + len(beyond))
            beyond += packed
        else:
            directory += struct.pack("<HHI", tag, 4, 1) + packed
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data))
        + data
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
        + beyond
    )


def png(bits: int, colour: int, lines: list[bytes], width: int, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, len(lines), bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    packed = (struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def read(encoded: bytes) -> np.ndarray:
    return np.asarray(decode_photo(encoded, "row 3"))


def test_the_tiff_of_these_tests_is_one() -> None:
    assert np.array_equal(read(tiff(pixels())), pixels())


@pytest.mark.parametrize("photometric", [1, 2], ids=["black is zero", "RGB"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [4, 5, 6, 8, 12])
def test_a_photo_of_several_bands_is_refused_with_their_number(bands: int, kind: type, photometric: int) -> None:
    extra = (0,) * (bands - (3 if photometric == 2 else 1))
    with pytest.raises(ValueError, match=rf"^row 3 is not a readable image: it has {bands} bands; keep the three"):
        read(tiff(pixels(bands, kind), photometric, extra))


@pytest.mark.parametrize("bands", [4, 5, 6, 8])
def test_bands_of_which_the_file_says_nothing_are_refused_too(bands: int) -> None:
    with pytest.raises(ValueError, match=rf"it has {bands} bands; keep the three"):
        read(tiff(pixels(bands)))


def test_a_grey_photo_with_another_band_is_refused() -> None:
    with pytest.raises(ValueError, match="it has 2 bands"):
        read(tiff(pixels(2), 1, (0,)))


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floating_point_numbers_are_refused_and_not_shown_black(kind: type, bands: int) -> None:
    values = np.random.default_rng(0).random((6, 9, bands)).astype(kind)
    with pytest.raises(ValueError, match=r"^row 3 is not a readable image: .*(floating-point|three of 8 bits|save)"):
        read(tiff(values, 2 if bands == 3 else 1))


@pytest.mark.parametrize("bits", [8, 10, 11, 12, 14])
@pytest.mark.parametrize("bands", [1, 3])
def test_fewer_bits_kept_in_sixteen_are_refused_and_not_shown_dark(bits: int, bands: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (6, 9, bands), np.uint16)
    marked = values.copy()
    marked[:2] = 65535  # as where nothing was taken up, or a pixel is broken
    for encoded in (
        tiff(values, 2 if bands == 3 else 1),
        png(16, 2 if bands == 3 else 0, [row.astype(">u2").tobytes() for row in values], 9),
        *([tiff(marked, 2 if bands == 3 else 1)] if bits > 8 else []),
    ):
        with pytest.raises(ValueError, match=r"its brightest level is \d+ of 65535, .* bits are kept in 16; stretch"):
            read(encoded)


@pytest.mark.parametrize("bands", [1, 3])
def test_sixteen_bits_that_are_filled_keep_their_upper_eight(bands: int) -> None:
    values = pixels(bands, np.uint16)
    for encoded in (
        tiff(values, 2 if bands == 3 else 1),
        png(16, 2 if bands == 3 else 0, [row.astype(">u2").tobytes() for row in values], 9),
    ):
        assert np.array_equal(read(encoded), np.broadcast_to(values >> 8, (6, 9, 3)))


@pytest.mark.parametrize(("low", "high"), [(-5, 40_000), (0, 65_536), (0, 2**30)])
def test_levels_that_are_no_sixteen_bits_are_refused_and_not_cut_off(low: int, high: int) -> None:
    values = np.array([[low, high]], np.int32)
    with pytest.raises(ValueError, match=rf"its levels are {low} to {high}, which are not the 0 to 65535"):
        read(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("bits", "line", "levels"), [(2, b"\x1b", [0, 85, 170, 255]), (4, b"\x01\x2f", [0, 17, 34, 255])]
)
def test_grey_of_few_bits_fills_the_range(bits: int, line: bytes, levels: list[int]) -> None:
    assert read(png(bits, 0, [line], 4))[0, :, 0].tolist() == levels


def half_transparent(form: str) -> bytes:
    rgba = np.dstack([pixels(), np.tile(np.array([0, 255, 128], np.uint8), (6, 3))])
    picture = Image.fromarray(rgba)
    if form == "palette":
        flat = Image.fromarray(pixels()).quantize(4)
        return encode(flat, transparency=bytes([0, 255, 255, 128]))
    return (
        tiff(rgba, 2, (2,))
        if form == "TIFF"
        else encode(picture, form, **({"lossless": True} if form == "WEBP" else {}))
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "palette"])
def test_what_is_transparent_shows_white_as_in_a_viewer(form: str) -> None:
    encoded = half_transparent(form)
    with Image.open(io.BytesIO(encoded)) as stored:
        rgba = np.asarray(stored.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    assert share.min() == 0
    expected = share * rgba[..., :3] + (1 - share) * 255
    assert np.abs(read(encoded) - expected).max() <= 1  # Pillow rounds


@pytest.mark.parametrize("form", ["TIFF", "PNG"])
def test_a_fourth_band_that_is_only_called_transparency_is_refused(form: str) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    encoded = tiff(bands, extra=(2,)) if form == "TIFF" else encode(Image.fromarray(bands), form)
    with pytest.raises(ValueError, match="has all kinds of values, as near infrared has; keep the three"):
        read(encoded)
    bands[..., 3] = 0
    encoded = tiff(bands, extra=(2,)) if form == "TIFF" else encode(Image.fromarray(bands), form)
    with pytest.raises(ValueError, match="all of its pixels are transparent; save it without transparency"):
        read(encoded)


def test_an_opaque_fourth_channel_changes_nothing() -> None:
    opaque = np.dstack([pixels(), np.full((6, 9), 255, np.uint8)])
    for encoded in (encode(Image.fromarray(opaque)), tiff(opaque, 2, (2,)), tiff(opaque, 2, (1,))):
        assert np.array_equal(read(encoded), pixels())
    assert np.array_equal(np.asarray(as_photo(opaque)), pixels())


def test_inks_come_as_pillow_mixes_them() -> None:
    inks = Image.fromarray(pixels()).convert("CMYK")
    for form in ("TIFF", "JPEG"):
        encoded = encode(inks, form)
        with Image.open(io.BytesIO(encoded)) as stored:
            assert np.array_equal(read(encoded), np.asarray(stored.convert("RGB")))


def test_of_a_cameras_several_views_the_photo_is_read(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (200, 20)]
    views[0].save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "a.mpo") as stored:
        assert len(list(ImageSequence.Iterator(stored))) == 2
    assert np.asarray(open_photo(tmp_path / "a.mpo")).mean() == pytest.approx(200, abs=1)


@pytest.mark.parametrize("mistyped", [b"\x01\x12\x00\x02", b"\x01\x12\x00\x07"], ids=["text", "undefined"])
def test_an_orientation_of_another_type_turns_nothing_as_viewers_have_it(mistyped: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(pixels()), "JPEG", exif=exif)
    assert turned.count(b"\x01\x12\x00\x03") == 1
    upright = np.asarray(Image.open(io.BytesIO(turned)))
    assert np.array_equal(read(turned.replace(b"\x01\x12\x00\x03", mistyped)), upright)
    assert read(turned).shape == (9, 6, 3)
