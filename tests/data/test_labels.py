"""What label maps may hold, held to naive loops over pixels; how they are read from files; names of classes."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from PIL import Image

from data.classes import CLASS_NAMES, ID2LABEL
from data.decoding import decode_pair
from data.labels import SCENE_PARSE_LABELS, LabelRule, read_label_names

ROOT = Path(__file__).resolve().parents[2]
BINARY = LabelRule(num_labels=2, reduce_labels=False, binary=True)
RULES = [
    SCENE_PARSE_LABELS,
    LabelRule(ignore_index=255),
    LabelRule(num_labels=150, reduce_labels=False),
    LabelRule(num_labels=5, reduce_labels=False, ignore_index=255),
    LabelRule(num_labels=5, reduce_labels=False, ignore_index=0),
    LabelRule(num_labels=5, reduce_labels=False, ignore_index=3),
    LabelRule(num_labels=1),
    LabelRule(num_labels=254),
    LabelRule(num_labels=254, ignore_index=255),
    LabelRule(num_labels=255, reduce_labels=False),
    LabelRule(num_labels=255, reduce_labels=False, ignore_index=255),
    BINARY,
    LabelRule(num_labels=2, reduce_labels=False, binary=True, ignore_index=128),
]


def naive(rule: LabelRule, value: int) -> int | None:
    """What one raw value becomes; None if the rule does not allow it."""
    if value == rule.ignore_index:
        return 255
    if rule.binary:
        return 1 if value else 0
    classes = range(rule.num_labels)
    raw = [0, *(k + 1 for k in classes)] if rule.reduce_labels else list(classes)
    return value if value in raw else None


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int, lines: list[bytes]) -> bytes:
    """A grey PNG of these bytes, whatever Pillow would make of them."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def read(annotation: bytes, rule: LabelRule = SCENE_PARSE_LABELS) -> np.ndarray:
    """The label map that comes of an annotation, with a photo of its size."""
    with Image.open(io.BytesIO(annotation)) as stored:
        photo = encode(Image.new("RGB", stored.size))
    _, label_map = decode_pair(photo, annotation, "row 3 in x.parquet", rule)
    assert label_map is not None
    assert label_map.mode == "L"
    return np.asarray(label_map)


# The rule


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_pixel_becomes_what_the_naive_rule_says(rule: LabelRule) -> None:
    allowed = [value for value in range(256) if naive(rule, value) is not None]
    labels = np.random.default_rng(0).choice(np.array(allowed, np.uint8), (13, 17))
    expected = [[naive(rule, int(value)) for value in line] for line in labels]
    found = rule.normalise(labels, "here")
    assert found.dtype == np.uint8
    assert found.tolist() == expected


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_exactly_the_values_outside_the_rule_are_refused(rule: LabelRule) -> None:
    for value in range(256):
        labels = np.zeros((2, 3), np.uint8)
        labels[1, 2] = value
        if naive(rule, value) is None:
            with pytest.raises(ValueError, match=f"^label map of here holds {value};"):
                rule.normalise(labels, "here")
        else:
            rule.normalise(labels, "here")


def test_normalising_leaves_the_labels_it_is_given_as_they_are() -> None:
    labels = np.array([[0, 5, 255]], np.uint8)
    labels.flags.writeable = False
    LabelRule(ignore_index=5).normalise(np.array([[0, 5]], np.uint8), "here")
    assert LabelRule(ignore_index=255).normalise(labels, "here").tolist() == [[0, 5, 255]]
    assert BINARY.normalise(labels, "here").tolist() == [[0, 1, 1]]
    assert labels.tolist() == [[0, 5, 255]]


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (SCENE_PARSE_LABELS, 151, "label map of row 17 in v.parquet holds 151; its classes are 0 (other) to 150"),
        (LabelRule(7, False), 7, "label map of row 17 in v.parquet holds 7; its classes are 0 to 6"),
        (
            LabelRule(7, ignore_index=255),
            8,
            "label map of row 17 in v.parquet holds 8; its classes are 0 (other) to 7, and 255 is ignored",
        ),
        (
            SCENE_PARSE_LABELS,
            255,
            "label map of row 17 in v.parquet holds 255; its classes are 0 (other) to 150; if 255 means ignored, give "
            "--ignore-index 255; if it means the object of a mask, give --binary-masks",
        ),
    ],
)
def test_a_stray_value_is_refused_with_place_value_and_range(rule: LabelRule, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rule.normalise(np.array([[1, value]], np.uint8), "row 17 in v.parquet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0; it must be 1 to 254"),
        ({"num_labels": 255}, "num_labels is 255; it must be 1 to 254"),
        ({"num_labels": 256, "reduce_labels": False}, "num_labels is 256; it must be 1 to 255"),
        ({"num_labels": True}, "num_labels is True"),
        ({"num_labels": 3.0}, "num_labels is 3.0"),
        ({"num_labels": None}, "num_labels is None"),
        ({"reduce_labels": 1}, "reduce_labels is 1; it must be true or false"),
        ({"binary": None}, "binary is None; it must be true or false"),
        (
            {"ignore_index": -65536},
            "ignore_index is -65536; it must be a raw value, at most 65535 either way, or several",
        ),
        ({"ignore_index": 65536}, "ignore_index is 65536"),
        ({"ignore_index": (255, 65536)}, "ignore_index is (255, 65536)"),
        ({"ignore_index": False}, "ignore_index is False"),
        ({"binary": True}, "reduce_labels is True but binary masks"),
        ({"binary": True, "reduce_labels": False}, "num_labels is 150 but binary masks have two classes; set it to 2"),
        (
            {"binary": True, "reduce_labels": False, "num_labels": 2, "ignore_index": 255},
            "ignore_index is 255 but in binary masks 0 is the background and 255 the object",
        ),
        (
            {"binary": True, "reduce_labels": False, "num_labels": 2, "ignore_index": 0},
            "ignore_index is 0 but in binary masks 0 is the background and 255 the object",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_field_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LabelRule(**fields)


# Label maps as files


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_label_map_is_what_is_stored_and_not_what_its_palette_shows(mode: str, form: str) -> None:
    labels = np.random.default_rng(1).integers(0, 151, (9, 7), dtype=np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette(np.random.default_rng(2).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert picture.mode == mode
    assert np.array_equal(read(encode(picture, form)), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_indices_of_few_bits_are_what_is_stored(bits: int) -> None:
    labels = np.random.default_rng(bits).integers(0, 2**bits, (5, 8), dtype=np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    stored = encode(picture, bits=bits)
    assert stored[24] == bits  # the depth in the header
    assert np.array_equal(read(stored), labels)


@pytest.mark.parametrize(
    ("bits", "line", "labels"),
    [(2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15]), (1, b"\x50", [0, 1, 0, 1])],
)
def test_grey_of_few_bits_is_what_is_stored_although_pillow_spreads_it(
    bits: int, line: bytes, labels: list[int]
) -> None:
    assert read(png(4, 1, bits, [line])).tolist() == [labels]


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_bilevel_masks_are_background_and_object(form: str) -> None:
    mask = np.random.default_rng(3).random((6, 11)) > 0.5
    for rule in (BINARY, LabelRule(num_labels=2, reduce_labels=False)):
        assert np.array_equal(read(encode(Image.fromarray(mask), form), rule), mask.astype(np.uint8))


def test_masks_of_0_and_255_are_background_and_object() -> None:
    mask = np.random.default_rng(4).random((6, 11)) > 0.5
    assert np.array_equal(read(encode(Image.fromarray(mask.astype(np.uint8) * 255)), BINARY), mask.astype(np.uint8))


def test_a_label_map_of_floating_point_numbers_is_refused_with_mode_and_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"annotation of row 3 in x\.parquet has mode F; it needs one channel of whole"
    ):
        read(encode(Image.new("F", (4, 4)), "TIFF"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_without_a_class_file_are_refused_with_those_there_are_and_what_to_do(mode: str) -> None:
    annotation = Image.new("RGB", (4, 4)).convert(mode)
    annotation.paste((128, 0, 0, 255)[: len(mode)], (0, 0, 3, 4))
    annotation.paste((1, 1, 1, 255)[: len(mode)], (0, 0, 1, 1))
    with pytest.raises(ValueError, match=rf"has mode {mode} and 3 colours \(\(128, 0, 0\), \(0, 0, 0\), .* class_dict"):
        read(encode(annotation))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_of_several_channels_is_its_value(mode: str) -> None:
    labels = np.random.default_rng(1).integers(0, 151, (9, 7), dtype=np.uint8)
    assert np.array_equal(read(encode(Image.fromarray(labels).convert(mode))), labels)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_label_map_with_transparent_pixels_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"has mode {mode} with pixels that are transparent, of no certain class"):
        read(encode(Image.new(mode, (4, 4))))


DEEP = {"I;16": np.uint16, "I": np.int32}


@pytest.mark.parametrize(("mode", "form"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF")])
def test_deep_label_maps_whose_values_fit_are_read(mode: str, form: str) -> None:
    labels = np.random.default_rng(1).integers(0, 151, (9, 7))
    picture = Image.fromarray(labels.astype(DEEP[mode]))
    assert picture.mode == mode
    assert np.array_equal(read(encode(picture, form)), labels)


@pytest.mark.parametrize("value", [256, 257, 511, 65535])
def test_deep_values_never_wrap(value: int) -> None:
    labels = np.full((2, 3), 1, np.uint16)
    labels[1, 2] = value
    for rule in (SCENE_PARSE_LABELS, LabelRule(ignore_index=255), LabelRule(255, reduce_labels=False)):
        with pytest.raises(ValueError, match=f"^label map of row 3 in x.parquet holds {value};"):
            read(encode(Image.fromarray(labels)), rule)


def test_a_deep_value_may_be_ignored_or_be_the_object() -> None:
    labels = np.array([[0, 4, 65535]], np.uint16)
    rule = LabelRule(5, reduce_labels=False, ignore_index=(255, 65535))
    assert read(encode(Image.fromarray(labels)), rule).tolist() == [[0, 4, 255]]
    assert read(encode(Image.fromarray(labels)), BINARY).tolist() == [[0, 1, 1]]


def test_sixteen_bits_a_channel_are_refused_as_half_of_them_would_be_lost() -> None:
    rows = b"".join(b"\0" + bytes([0, 3] * 6) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    with pytest.raises(ValueError, match="16 bits a channel, of which half would be lost"):
        read(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_jpeg_masks_are_cut_at_half_where_they_are_binary_and_refused_else() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[6:23, 11:19] = 255
    stored = encode(Image.fromarray(mask), "JPEG", quality=30)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(stored))))) > 2
    assert np.array_equal(read(stored, BINARY), mask // 255)
    with pytest.raises(ValueError, match="must be PNG or BMP or TIFF"):
        read(stored, LabelRule(2, reduce_labels=False, ignore_index=255))


def test_jpeg_inside_a_tiff_is_refused_like_jpeg() -> None:
    with pytest.raises(ValueError, match="JPEG inside, which blurs class ids"):
        read(encode(Image.new("L", (16, 16), 3), "TIFF", compression="jpeg"))


def test_a_label_map_of_several_pages_is_refused_with_their_number() -> None:
    pages = [Image.new("L", (4, 4), k) for k in range(3)]
    with pytest.raises(ValueError, match="3 pages, of which one has to be chosen"):
        read(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


def test_a_webp_annotation_is_refused_by_its_format() -> None:
    with pytest.raises(ValueError, match=r"annotation of row 3 in x\.parquet does not decode .* it must be PNG or BMP"):
        read(encode(Image.new("L", (4, 4)), "WEBP", lossless=True))


def test_the_default_rule_is_that_of_sceneparse150() -> None:
    photo = encode(Image.new("RGB", (3, 1)))
    labels = np.array([[0, 150, 1]], np.uint8)
    _, label_map = decode_pair(photo, encode(Image.fromarray(labels)), "here")
    assert np.asarray(label_map).tolist() == labels.tolist()
    with pytest.raises(ValueError, match=r"holds 151; its classes are 0 \(other\) to 150$"):
        decode_pair(photo, encode(Image.fromarray(labels + np.uint8(1))), "here")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter after each test
@pytest.mark.parametrize(("faulty", "named"), [(0, "image"), (1, "annotation")])
def test_a_picture_beyond_the_limit_is_refused_with_its_size(
    faulty: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [encode(Image.new("L", (2, 2))), encode(Image.new("L", (2, 2)))]
    pair[faulty] = encode(Image.new("L", (6, 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)
    with pytest.raises(
        ValueError, match=rf"^{named} of here is too large \(6 x 4 pixels, above the limit of 23 pixels\)"
    ):
        decode_pair(pair[0], pair[1], "here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)  # beyond twice the limit Pillow itself raises
    with pytest.raises(ValueError, match=rf"^{named} of here is too large \(.*24 pixels"):
        decode_pair(pair[0], pair[1], "here")


@pytest.mark.parametrize("limit", [24, None])
def test_a_picture_within_the_limit_or_without_one_is_read(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert read(encode(Image.new("L", (6, 4), 9))).tolist() == [[9] * 6] * 4


WARNINGS = """
import io, warnings
from PIL import Image
from data.decoding import decode_pair

def encoded(side):
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()

Image.MAX_IMAGE_PIXELS = 10000
for side in (10, 110, 120, 10, 150, 10):  # pixels: below the limit, above it, beyond twice of it
    try:
        decode_pair(encoded(side), None, f"side {side}")
    except ValueError as error:
        print(error)
    warnings.warn("said once")
"""


def test_pictures_beyond_the_limit_cause_no_warning_and_no_other_warning_to_repeat() -> None:
    done = programs.run("-c", WARNINGS)
    assert [line.split(" is too large")[0] for line in done.stdout.splitlines()] == [
        f"image of side {side}" for side in (110, 120, 150)
    ]
    assert [line for line in done.stderr.splitlines() if "Warning" in line] == ["<string>:17: UserWarning: said once"]


# Names of classes


NAMES = ["wall", "building", "sky with clouds", "bed ", "arbre é"]


@pytest.mark.parametrize(
    "entries",
    [NAMES, {str(k): name for k, name in enumerate(NAMES)}, {name: k for k, name in enumerate(NAMES)}],
    ids=["list", "id2label", "label2id"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_json_names_are_read_by_their_ids_in_any_order(entries: Any, turned: bool, tmp_path: Path) -> None:
    if turned and isinstance(entries, dict):
        entries = dict(reversed(entries.items()))
    path = tmp_path / "names.JSON"
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert read_label_names(path) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "wall\nsky with clouds\nbed é\n",
        "wall\r\nsky with clouds\r\nbed é",
        "\ufeffwall\n sky with clouds \nbed é\n\n \n",
    ],
    ids=["plain", "windows", "untidy"],
)
def test_a_text_file_has_a_name_per_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_label_names(tmp_path / "names.txt") == ["wall", "sky with clouds", "bed é"]


def test_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    for content in ({"0": "1", "1": "0"}, {"1": 0, "0": 1}, ["1", "0"]):
        (tmp_path / "names.json").write_text(json.dumps(content))
        assert read_label_names(tmp_path / "names.json") == ["1", "0"]


def test_the_most_names_that_a_label_map_can_hold_are_read(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(255)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert read_label_names(tmp_path / "names.txt") == names


@pytest.mark.real_data
def test_the_hubs_names_are_those_of_sceneparse150(real_data: Path) -> None:
    names = read_label_names(real_data / "datasets/huggingface/label-files/ade20k-id2label.json")
    assert names == list(ID2LABEL.values())
    assert [name.strip() for name in names] == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.json", "{", "not JSON"),
        ("n.json", "", "not JSON"),
        ("n.json", "[" * 100_000, ""),
        ("n.json", '"wall"', "JSON holds a str; it must be a list of names, or ids with names"),
        ("n.json", "3", "JSON holds a int"),
        ("n.json", "null", "JSON holds a NoneType"),
        ("n.json", "[]", "0 names; there must be 1 to 255"),
        ("n.json", "{}", "0 names; there must be 1 to 255"),
        ("n.json", '["wall", 3]', "class 1 has 3 for a name; it must be text"),
        ("n.json", '["wall", null]', "class 1 has None for a name"),
        ("n.json", '["wall", ""]', "class 1 has a blank name; name every class"),
        ("n.json", '["wall", "sky", "wall"]', "name 'wall' is there twice"),
        ("n.json", '{"0": "wall", "1": "wall"}', "name 'wall' is there twice"),
        ("n.json", '{"0": "wall", "0": "sky"}', "key '0' is there twice"),
        ("n.json", '{"wall": 0, "wall": 1}', "key 'wall' is there twice"),
        ("n.json", '{"0": "wall", "2": "sky"}', "no name for class 1; the ids of 2 names must be 0 to 1, each once"),
        ("n.json", '{"1": "wall", "2": "sky"}', "no name for class 0; the ids of 2 names must be 0 to 1"),
        ("n.json", '{"0": "wall", "00": "sky"}', "id '0' is there twice"),
        ("n.json", '{"wall": 0, "sky": 0}', "id '0' is there twice"),
        ("n.json", '{"wall": 0, "sky": -1}', "key 'wall' is not a class id"),
        ("n.json", '{"wall": 0, "sky": 1.0}', "key 'wall' is not a class id"),
        ("n.json", '{"wall": 0, "sky": true}', "key 'wall' is not a class id"),
        ("n.json", '{"0": "wall", "-1": "sky"}', "key '-1' is not a class id"),
        ("n.json", '{"0": "wall", "1_0": "sky"}', "key '1_0' is not a class id"),
        ("n.json", '{"0": "wall", "1": ["sky"]}', "class 1 has \\['sky'\\] for a name"),
        ("n.json", '{"wall": "a"}', "key 'wall' is not a class id; give ids with names, or names with ids"),
        ("n.json", json.dumps([f"class {k}" for k in range(256)]), "256 names; there must be 1 to 255"),
        ("n.txt", "\n".join(f"class {k}" for k in range(256)), "256 names; there must be 1 to 255"),
        ("n.txt", "", "0 names; there must be 1 to 255"),
        ("n.txt", "\n \n", "0 names; there must be 1 to 255"),
        ("n.txt", "wall\n\nsky\n", "class 1 has a blank name"),
        ("n.txt", "wall\nsky\nwall\n", "name 'wall' is there twice"),
    ],
)
def test_names_that_break_a_rule_are_refused_by_file(file: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"^label names in {re.escape(str(tmp_path / file))}: {message}"):
        read_label_names(tmp_path / file)


@pytest.mark.parametrize("file", ["n.json", "n.txt"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_names_in_another_encoding_are_refused_by_file(file: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes('["bed é"]'.encode(encoding))
    with pytest.raises(ValueError, match=rf"{re.escape(file)} is not UTF-8 text \(byte \d+\); save it as UTF-8"):
        read_label_names(tmp_path / file)


def test_a_file_of_names_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"names\.txt"):
        read_label_names(tmp_path / "names.txt")
