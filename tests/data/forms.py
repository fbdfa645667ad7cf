"""One small set of scenes in the forms in which people hold segmentation data.

python tests/data/forms.py FOLDER      writes every form into a folder of its own
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.class_files import Classes
from data.understanding import Flags

COUNT = 4
NAMES = ("background", "sky", "road", "car")
COLOURS = ((0, 0, 0), (70, 130, 180), (128, 64, 128), (64, 0, 128))
OWN = Flags(Classes("names", NAMES))
ORIENTATION = 0x0112
Array = np.ndarray


@dataclass(frozen=True)
class Form:
    """How one form is opened: below its folder, with these arguments and flags; what its labels are, of those below."""

    source: str = ""
    split: str = "train"
    flags: Flags = OWN
    options: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    photo_tolerance: int = 0


def photo(number: int) -> Array:
    """A photo (H, W, 3) of blocks, which JPEG keeps nearly as they are."""
    return np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)


def labels(number: int) -> Array:
    """Its label map (H, W), 0 to 3."""
    held = np.random.default_rng((number, 1)).integers(0, 4, (12, 16), np.uint8)
    held[0, :4] = range(4)
    return held.repeat(4, 0).repeat(4, 1)


def name(number: int) -> str:
    return f"p{number:04d}"


def save(path: Path, held: Array | Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (held if isinstance(held, Image.Image) else Image.fromarray(held)).save(path, **options)


# Label maps

Draw = Callable[[Array], Array | Image.Image]


def coloured(held: Array) -> Array:
    return np.array(COLOURS, np.uint8)[held]


def indexed(held: Array) -> Image.Image:
    picture = Image.fromarray(held)
    picture.putpalette([channel for colour in COLOURS for channel in colour])
    return picture


def shuffled(held: Array) -> Image.Image:
    """A palette PNG as an optimiser leaves colour masks: its indices mean nothing."""
    order = np.random.default_rng(int(held.sum())).permutation(4)
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[held])
    picture.putpalette([channel for k in order for channel in COLOURS[k]])
    return picture


def opaque(held: Array) -> Array:
    return np.dstack([held, np.full(held.shape[:2], 255, np.uint8)])


def class_dict(root: Path, names: tuple[str, ...] = NAMES) -> None:
    lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(names, COLOURS, strict=True)]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))


def labelmap(root: Path) -> None:
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines, ""]))


def colour_json(root: Path) -> None:
    entries = [{"name": n, "color": list(c)} for n, c in zip(NAMES, COLOURS, strict=True)]
    (root / "classes.json").write_text(json.dumps(entries))


def id2label(root: Path) -> None:
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))


def roboflow(root: Path) -> None:
    rows = [f"{k}, {name}" for k, name in enumerate(NAMES)]
    (root / "train/_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]))


def object_info(root: Path) -> None:
    """As ADE20K's table: tabs, a header, ids from 1."""
    rows = [f"{k + 1}\t0.1\t{name}" for k, name in enumerate(NAMES)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tName", *rows]))


# Folders


def pairs(
    root: Path,
    photo_path: str = "images/{}.png",
    label_path: str = "annotations/{}.png",
    draw: Draw = lambda held: held,
    beside: Callable[[Path], None] | None = None,
    form: Form = Form(),
    draw_photo: Draw = lambda held: held,
    **options: Any,
) -> Form:
    for number in range(COUNT):
        save(root / photo_path.format(name(number)), draw_photo(photo(number)), **options.get("photo", {}))
        save(root / label_path.format(name(number)), draw(labels(number)), **options.get("label", {}))
    if beside is not None:
        beside(root)
        return Form(**{**form.__dict__, "flags": Flags()})
    return form


def split_pairs(root: Path, photo_path: str, label_path: str) -> Form:
    """The scenes as train, and another as validation, which must not come among them."""
    for split in ("train", "val"):
        for number in range(COUNT) if split == "train" else (9,):
            save(root / photo_path.format(split=split, name=name(number)), photo(number))
            save(root / label_path.format(split=split, name=name(number)), labels(number))
    return Form()


def voc(root: Path, draw: Draw, lists: str = "train") -> Form:
    form = pairs(root, "JPEGImages/{}.png", "SegmentationClass/{}.png", draw, labelmap)
    save(root / "JPEGImages/other.png", photo(9))
    save(root / "SegmentationClass/other.png", draw(labels(9)))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / f"ImageSets/Segmentation/{lists}.txt").write_text("".join(f"{name(i)}\n" for i in range(COUNT)))
    if lists == "train":
        (root / "ImageSets/Segmentation/val.txt").write_text("other\n")
    return form


def partly_annotated_voc(root: Path) -> Form:
    """As Pascal VOC itself, where most photos have no label map and lists name those that have."""
    form = voc(root, indexed)
    save(root / "JPEGImages/never.png", photo(8))
    return form


def listed_names(root: Path, title: str) -> Form:
    """Photos with names of several words or letters, one a line."""
    for number in range(COUNT):
        save(root / f"images/{title.format(number)}.png", photo(number))
        save(root / f"masks/{title.format(number)}.png", labels(number))
    save(root / "images/other.png", photo(9))
    (root / "train.txt").write_text("".join(f"{title.format(i)}.png\n" for i in range(COUNT)), encoding="utf-8")
    return Form()


def beside_others(root: Path) -> Form:
    """As archives unpack on a Mac, with a table of something else."""
    form = pairs(root, "set/images/{}.png", "set/masks/{}.png")
    save(root / "__MACOSX/set/images/._x.png", photo(9))
    (root / "set/train.csv").write_text("image_id,weather\nx,sun\ny,rain\n")
    return form


def ids_with_holes(root: Path) -> Form:
    """Greys that are drawn to be seen, with a table of what they mean in another order."""
    rows = [f"{name},{50 * k}" for k, name in enumerate(NAMES)]
    return pairs(root, draw=lambda held: held * np.uint8(50), beside=lambda root: void(
        (root / "class_dict.csv").write_text("\n".join(["class,pixel value", *rows[::-1]]))
    ))  # fmt: skip


def void(_: object) -> None:
    """Nothing, of whatever is written."""


def cityscapes(root: Path, kind: str) -> Form:
    ids = np.array([7, 8, 11, 12] if kind == "labelIds" else [0, 1, 2, 3], np.uint8)
    for split in ("train", "val"):
        for number in range(COUNT) if split == "train" else (9,):
            stem = f"{split}/bonn/{name(number)}"
            save(root / f"leftImg8bit/{stem}_leftImg8bit.png", photo(number))
            save(root / f"gtFine/{stem}_gtFine_{kind}.png", ids[labels(number)])
            save(root / f"gtFine/{stem}_gtFine_color.png", coloured(labels(number)))
            save(root / f"gtFine/{stem}_gtFine_instanceIds.png", labels(number).astype(np.uint16) * 1000)
    return Form(flags=Flags() if kind == "labelIds" else Flags(reduce_labels=False))


def listed(
    root: Path, lines: Callable[[int], str], header: str = "", file: str = "train.csv", alone: bool = False
) -> Form:
    for number in range(COUNT):
        save(root / f"a/{name(number)}.png", photo(number))
        save(root / f"b/{number}-ids.png", labels(number))
    text = "\n".join([*([header] if header else []), *(lines(number) for number in range(COUNT))])
    (root / file).write_text(text)
    return Form(source=file if alone else "")


def upright_masks(root: Path, orientation: int) -> Form:
    """Photos as phones store them, with masks as tools export them."""
    back = {3: 180, 6: 90, 8: 270}[orientation]
    for number in range(COUNT):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        turned = Image.fromarray(photo(number)).rotate(back, expand=True)
        save(root / f"images/{name(number)}.png", turned, exif=exif)
        save(root / f"annotations/{name(number)}.png", labels(number))
    return Form()


def masks(root: Path, draw: Draw, label_path: str = "annotations/{}.png", **flags: Any) -> Form:
    form = Form(flags=Flags(**flags), binary=True)
    options = {"quality": 90} if label_path.endswith("jpg") else {}
    return pairs(root, "images/{}.png", label_path, lambda held: draw(held > 0), form=form, label=options)


# Tables


def encoded(held: Array | Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    (held if isinstance(held, Image.Image) else Image.fromarray(held)).save(stream, form)
    return stream.getvalue()


def table(image: str, label: str, binary: bool = False) -> pa.Table:
    kind = pa.binary() if binary else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, pa.Array] = {"id": pa.array(range(COUNT))}
    for column, make in ((label, labels), (image, photo)):
        files = [encoded(make(number)) for number in range(COUNT)]
        held = files if binary else [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)]
        columns[column] = pa.array(held, kind)
    return pa.table(columns)


def parquet(
    root: Path,
    image: str,
    label: str,
    binary: bool = False,
    file: str = "train.parquet",
    form: Form = Form(),
) -> Form:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(image, label, binary), root / file)
    return form


def sidewalk(root: Path) -> Form:
    id2label(root)
    return parquet(root, "pixel_values", "label", file="data/train-00000-of-00001.parquet", form=Form(flags=Flags()))


def saved(root: Path, as_dict: bool) -> Form:
    from datasets import Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    columns = {"image": [photo(i) for i in range(COUNT)], "mask": [labels(i) for i in range(COUNT)]}
    rows = Dataset.from_dict({k: [Image.fromarray(a) for a in v] for k, v in columns.items()}, features=features)
    (DatasetDict({"train": rows}) if as_dict else rows).save_to_disk(root / "saved")
    return Form(source="saved")


def reduced(root: Path) -> Form:
    """As SceneParse150 has it: class k at k + 1, 0 for other, of which there is none here."""
    return pairs(root, draw=lambda held: held + np.uint8(1), beside=object_info)


def void_first(root: Path) -> Form:
    pairs(root, draw=lambda held: held + np.uint8(1))
    flags = Flags(Classes("names", ("unlabeled", *NAMES)), reduce_labels=True)
    return Form(flags=flags)


PNG, PLAIN = "annotations/{}.png", "images/{}.png"
SEMICOLON, TAB = "a/{0};b/{1}-ids.png", "a/{0}\tb/{1}-ids.png"
FORMS: dict[str, Callable[[Path], Form]] = {
    "images and annotations": pairs,
    **{
        f"images and {folder}": partial(pairs, label_path=f"{folder}/{{}}.png")
        for folder in ("masks", "labels", "mask", "gt", "SegmentationClass")
    },
    "imgs and masks": partial(pairs, photo_path="imgs/{}.png", label_path="masks/{}.png"),
    "in a folder of its own, as archives unpack": partial(
        pairs, photo_path="set/images/{}.png", label_path="set/masks/{}.png"
    ),
    "splits below the kinds": lambda root: split_pairs(root, "images/{split}/{name}.png", "masks/{split}/{name}.png"),
    "splits above the kinds": lambda root: split_pairs(root, "{split}/images/{name}.png", "{split}/masks/{name}.png"),
    "splits with years": lambda root: split_pairs(
        root, "images/{split}2017/{name}.png", "labels/{split}2017/{name}.png"
    ),
    "train and train_labels, _L": lambda root: split_pairs(root, "{split}/{name}.png", "{split}_labels/{name}_L.png"),
    "train and trainannot": lambda root: split_pairs(root, "{split}/{name}.png", "{split}annot/{name}.png"),
    "side by side, _mask": partial(pairs, photo_path="{}.png", label_path="{}_mask.png"),
    "side by side, _label": partial(pairs, photo_path="{}.png", label_path="{}_label.png"),
    "side by side in split folders": lambda root: split_pairs(root, "{split}/{name}.png", "{split}/{name}_mask.png"),
    **{
        f"side by side, .jpg and {label}": partial(
            pairs,
            photo_path="{}.jpg",
            label_path="{}" + label,
            photo={"quality": 100, "subsampling": 0},
            form=Form(photo_tolerance=4),
        )
        for label in ("_mask.png", ".png")
    },
    "Roboflow, _classes.csv beside the photos": partial(
        pairs, photo_path="train/{}.png", label_path="train/{}_mask.png", beside=roboflow
    ),
    "side by side, _sat and _mask": partial(pairs, photo_path="{}_sat.png", label_path="{}_mask.png"),
    "side by side, in folders of patients": lambda root: pairs(
        root, *(f"scans/TCGA_{{0:.4}}/{{0}}{word}.png" for word in ("", "_mask"))
    ),
    "train_images and train_masks": lambda root: split_pairs(
        root, "{split}_images/{name}.png", "{split}_masks/{name}.png"
    ),
    "img_dir and ann_dir": lambda root: split_pairs(root, "img_dir/{split}/{name}.png", "ann_dir/{split}/{name}.png"),
    "kinds below places": lambda root: split_pairs(
        root, "{split}/Rural/images_png/{name}.png", "{split}/Rural/masks_png/{name}.png"
    ),
    "beside what a Mac leaves, and a table": beside_others,
    "a list of names with spaces": partial(listed_names, title="my photo {}"),
    "a list of Korean names": partial(listed_names, title="사진{}"),
    "two endings": partial(pairs, photo_path="images/{}.v1.png", label_path="masks/{}.v1.png.png"),
    "a suffix of one's own": partial(pairs, label_path="masks/{}_drawn by me.png"),
    "suffix _sat and _mask": partial(pairs, photo_path="images/{}_sat.png", label_path="masks/{}_mask.png"),
    "prefix img_ and mask_": partial(pairs, photo_path="images/img_{}.png", label_path="masks/mask_{}.png"),
    "Pascal VOC, palette": partial(voc, draw=indexed),
    "Pascal VOC, partly annotated": partly_annotated_voc,
    "Pascal VOC, colours": partial(voc, draw=coloured),
    "CVAT, default.txt": partial(voc, draw=coloured, lists="default"),
    "Cityscapes, labelTrainIds": partial(cityscapes, kind="labelTrainIds"),
    "Cityscapes, labelIds": partial(cityscapes, kind="labelIds"),
    "CSV with a header": lambda root: listed(
        root, lambda i: f"a/{name(i)}.png,b/{i}-ids.png", "image,mask", "train.csv"
    ),
    "CSV with semicolons, label first": lambda root: listed(
        root, lambda i: f"b/{i}-ids.png;a/{name(i)}.png", "mask_path;image_path", "train.csv"
    ),
    "text with spaces, no header": lambda root: listed(
        root, lambda i: f"a/{name(i)}.png b/{i}-ids.png", "", "train.txt"
    ),
    "a list by itself, with tabs": lambda root: listed(
        root, lambda i: f"a/{name(i)}.png\tb/{i}-ids.png", "", "pairs.tsv", alone=True
    ),
    "a list with a column of splits": lambda root: listed(
        root, lambda i: f"{i},a/{name(i)}.png,b/{i}-ids.png,train", "id,image,mask,split", "all.csv", alone=True
    ),
    **{
        f"photos as {ending}": partial(
            pairs,
            photo_path=f"images/{{}}.{ending}",
            photo={"lossless": True} if ending == "webp" else {},
        )
        for ending in ("bmp", "tif", "tiff", "webp", "PNG")
    },
    **{
        f"photos as {ending}": partial(
            pairs,
            photo_path=f"images/{{}}.{ending}",
            photo={"format": "JPEG", "quality": 100, "subsampling": 0},
            form=Form(photo_tolerance=4),
        )
        for ending in ("jpg", "jpeg", "jfif")
    },
    "photos with an opaque fourth channel": lambda root: pairs(root, draw_photo=opaque),
    **{f"photos on their side, {o}": partial(upright_masks, orientation=o) for o in (3, 6, 8)},
    "labels as bmp": partial(pairs, label_path="annotations/{}.bmp"),
    "labels as tif": partial(pairs, label_path="annotations/{}.tif"),
    "labels of 16 bits": partial(pairs, draw=lambda held: held.astype(np.uint16)),
    "labels of 32 bits": partial(pairs, label_path="annotations/{}.tif", draw=lambda held: held.astype(np.int32)),
    "labels as grey in RGB": partial(pairs, draw=lambda held: np.stack([held] * 3, -1)),
    "labels as grey in RGBA": partial(pairs, draw=lambda held: np.dstack([held, held, held, np.full_like(held, 255)])),
    "labels by palette index": partial(pairs, draw=indexed),
    "labels by palette index, 2 bits": partial(pairs, draw=indexed, label={"bits": 2}),
    "colours, class_dict.csv": partial(pairs, draw=coloured, beside=class_dict),
    "colours, labelmap.txt": partial(pairs, draw=coloured, beside=labelmap),
    "colours, JSON": partial(pairs, draw=coloured, beside=colour_json),
    "colours in RGBA": partial(
        pairs, draw=lambda held: Image.fromarray(coloured(held)).convert("RGBA"), beside=class_dict
    ),
    "colours in shuffled palettes": partial(pairs, draw=shuffled, beside=class_dict),
    "labels with id2label.json": partial(pairs, beside=id2label),
    "labels from 1, objectInfo150.txt": reduced,
    "labels with holes, class_dict.csv": ids_with_holes,
    "labels from 1, unlabeled the first name": void_first,
    "masks of 0 and 255": partial(masks, draw=lambda held: held * np.uint8(255)),
    "masks of 1 bit": partial(masks, draw=Image.fromarray),
    "masks of 0 and 1": partial(masks, draw=lambda held: held.astype(np.uint8), binary=True),
    "masks of 0 and 255 in RGB": partial(masks, draw=lambda held: np.stack([held * np.uint8(255)] * 3, -1)),
    **{
        f"masks as {ending}": partial(
            masks, draw=lambda held: held * np.uint8(255), label_path=f"annotations/{{}}.{ending}", binary=True
        )
        for ending in ("gif", "jpg")
    },
    "parquet, image and mask": partial(parquet, image="image", label="mask"),
    "parquet, bytes alone": partial(parquet, image="image", label="label", binary=True),
    "parquet, columns named": partial(
        parquet, image="x", label="y", form=Form(options={"image_column": "x", "label_column": "y"})
    ),
    "sidewalk-semantic": sidewalk,
    "save_to_disk": partial(saved, as_dict=False),
    "save_to_disk, several splits": partial(saved, as_dict=True),
}


def write_all(folder: Path) -> None:
    for title, write in FORMS.items():
        (folder / title).mkdir(parents=True)
        write(folder / title)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
