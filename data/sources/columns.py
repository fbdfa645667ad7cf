"""Which columns of a table hold the photos and the label maps: by names, by its metadata, or by what they hold."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

IMAGE, ANNOTATION, SCENE_CATEGORY = "image", "annotation", "scene_category"  # what they are called here
IMAGE_NAMES = {"image", "images", "pixel_values", "img", "photo", "picture", "rgb", "input", "jpg", "input_image"}
LABEL_NAMES = {
    "annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentation_mask", "seg",
    "semantic_segmentation", "semantic", "semantic_mask", "label_map", "label_mask", "segmentation_map", "ground_truth",
    "gt", "target", "png",
}  # fmt: skip
_OTHER_MAPS = re.compile("depth|instance|panoptic|normal|edge|disparity|confidence|saliency|preview|overlay|colou?r")
_LISTS_OF_CLASSES = re.compile("class|categor|label|segment|object|annotation")
_MOST_COLOURS = 64  # of a label map

FirstRow = Callable[[list[str]], dict[str, Any]]  # of these columns


@dataclass(frozen=True)
class Known:
    """What a source says of its label maps: how they were found, names of classes, and what stored values stand for."""

    about: str = ""  # nothing where it is plain
    class_names: tuple[str, ...] = ()
    values: tuple[tuple[int, int], ...] = ()


class Asked(NamedTuple):
    """The columns that the user names, where any."""

    image: str | None = None
    annotation: str | None = None


NOT_ASKED = Asked()
PLAIN = Known()


@dataclass(frozen=True)
class Columns:
    """The names that the columns have in a file, and what its metadata says of the numbers in them."""

    image: str = IMAGE
    annotation: str = ANNOTATION
    scene_category: str | None = None
    scene_categories: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()  # of a list of classes that each row has

    @property
    def names(self) -> list[str]:
        """Those to read."""
        return [self.image, self.annotation, *([self.scene_category] if self.scene_category else [])]

    @property
    def known(self) -> Known:
        """What a run says of them; nothing where they are those of SceneParse150."""
        about = f"photos from column {self.image}, label maps from {self.annotation} (--image-column, --label-column)"
        return Known("" if self._are_plain else about, self.class_names)

    @property
    def _are_plain(self) -> bool:
        return (self.image, self.annotation) == (IMAGE, ANNOTATION)

    @property
    def key(self) -> str:
        """What tells copies of these columns from those of others."""
        if self._are_plain:
            return ""
        return hashlib.sha256(f"{self.image}\n{self.annotation}".encode()).hexdigest()[:8]

    def arrange(self, table: pa.Table) -> pa.Table:
        """A table of just these columns under the names that they have here, each file a struct of bytes and path."""
        columns = {IMAGE: table.column(self.image), ANNOTATION: table.column(self.annotation)}
        columns = {name: _as_files(column) for name, column in columns.items()}
        if self.scene_category:
            columns[SCENE_CATEGORY] = table.column(self.scene_category)
        return pa.table(columns)


def find_columns(schema: pa.Schema, name: str, first_row: FirstRow, asked: Asked) -> Columns:
    """The columns of a file called ``name``. Raises ValueError with the candidates where it cannot be told."""
    files = [field.name for field in schema if _holds_files(field.type)]
    _check(schema, name, files, asked)
    image = asked.image or _named(files, IMAGE_NAMES, name, "--image-column", asked.annotation)
    label = asked.annotation or _named(files, LABEL_NAMES, name, "--label-column", image)
    if image is None or label is None:
        image, label = _by_elimination(schema, files, image, label) or _by_content(files, image, label, name, first_row)
    features = _features(schema)
    scenes = SCENE_CATEGORY if schema.names.count(SCENE_CATEGORY) == 1 else None
    if scenes and not pa.types.is_integer(schema.field(SCENE_CATEGORY).type):
        scenes = None
    return Columns(
        image, label, scenes, _scene_categories(features), _class_names(features) if label != SCENE_CATEGORY else ()
    )


def _check(schema: pa.Schema, name: str, files: list[str], asked: Asked) -> None:
    for column, flag in zip(asked, ("--image-column", "--label-column"), strict=True):
        if column is not None and (column not in files or schema.names.count(column) > 1):
            raise ValueError(
                f"{flag} is {column!r}; the columns of {name} that hold files are {', '.join(files) or 'none'}"
            )
    if len(set(files)) < 2 or len(set(files)) < len(files) or asked.image == asked.annotation is not None:
        raise ValueError(
            f"{name} has the columns {', '.join(schema.names)}; a shard needs image and annotation, or two under other "
            "names, each with the bytes of files"
        )


def _named(files: list[str], known: set[str], name: str, flag: str, taken: str | None) -> str | None:
    """The one column with a known name; None if there is none."""
    found = [c for c in files if c != taken and re.sub(r"[^a-z0-9]+", "_", c.lower()) in known]
    if len(found) > 1 and {IMAGE, ANNOTATION} & set(found):
        found = [column for column in found if column in (IMAGE, ANNOTATION)]
    if len(found) > 1:
        raise ValueError(
            f"{name} has several columns that may be meant: {', '.join(found)}; {flag} names the right one"
        )
    return found[0] if found else None


def _by_elimination(
    schema: pa.Schema, files: list[str], image: str | None, label: str | None
) -> tuple[str, str] | None:
    """The other one of exactly two columns of files or, by the metadata, of images."""
    if (image is None) == (label is None):
        return None
    features = _features(schema)
    kinds = [c for c in files if isinstance(features.get(c), dict) and features[c].get("_type") == "Image"]
    for some in (kinds, files):
        others = [column for column in some if column not in (image, label)]
        if len(some) == 2 and len(others) == 1 and not _OTHER_MAPS.search(others[0].lower()):
            return (image, others[0]) if image is not None else (others[0], str(label))
    return None


def _by_content(
    files: list[str], image: str | None, label: str | None, name: str, first_row: FirstRow
) -> tuple[str, str]:
    """By the files of the first row: one column of photos, one of label maps."""
    rest = [c for c in files if c not in (image, label) and not _OTHER_MAPS.search(c.lower())]
    row = first_row(rest)
    kinds = {column: _kind(row[column]) for column in rest}
    photos = [image] if image else [column for column in rest if kinds[column] == "photo"]
    maps = [label] if label else [column for column in rest if kinds[column] == "map"]
    if len(photos) != 1 or len(maps) != 1:
        raise ValueError(
            f"{name} has the columns of files {', '.join(files)}, and which are the photos and the label maps cannot "
            "be told; --image-column and --label-column name them"
        )
    return photos[0], maps[0]


def _kind(value: Any) -> str | None:
    """Whether a file is a photo or a label map, as far as its form and its colours tell."""
    encoded = value.get("bytes") if isinstance(value, dict) else value
    try:
        with Image.open(io.BytesIO(encoded or b""), formats=("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")) as picture:
            if picture.format == "JPEG":
                return "photo"
            return "map" if picture.mode == "P" or picture.getcolors(_MOST_COLOURS) else "photo"
    except Exception:  # Pillow's decoders raise what they like for damaged files
        return None


def _holds_files(kind: pa.DataType) -> bool:
    if _is_binary(kind):
        return True
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or kind.get_field_index("path") < 0:
        return False
    path = kind.field("path").type
    return _is_binary(kind.field("bytes").type) and (
        pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _as_files(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _is_binary(column.type):
        return column
    chunks = [
        pa.StructArray.from_arrays([chunk, pa.nulls(len(chunk), pa.string())], ["bytes", "path"])
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.struct([("bytes", column.type), ("path", pa.string())]))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` says of the columns, where it wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _scene_categories(features: dict[str, Any]) -> tuple[str, ...]:
    """The names behind the ``scene_category`` numbers, as far as the metadata has them."""
    feature = features.get(SCENE_CATEGORY)
    return tuple(map(str, feature["names"])) if isinstance(feature, dict) and _is_list(feature.get("names")) else ()


def _class_names(features: dict[str, Any]) -> tuple[str, ...]:
    """The names of a list of classes that every row has; those of a single class are of whole photos, as tags are."""
    for column, feature in features.items():
        if not _LISTS_OF_CLASSES.search(column.lower()):
            continue
        inner = (
            feature.get("feature")
            if isinstance(feature, dict)
            else feature[0]
            if _is_list(feature) and feature
            else None
        )
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and _is_list(inner.get("names")):
            return tuple(map(str, inner["names"]))
    return ()


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
