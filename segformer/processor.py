"""Photo and label map to tensors: resize, reduce labels, normalise, to the bit as transformers' PIL processor does.

Everything works on uint8 until the last step. There, rescaling and normalising take one of 256 values per channel to
one float32, so a table of 3 x 256 entries does both exactly, computed once in the reference's own order of operations.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from segformer.console import counted
from segformer.files import CONFIG_NAME, PROCESSOR_NAME, write_atomically
from segformer.geometry import MOST_PIXELS, PAPER_SCALE, RESIZE_MODES, Placement, keep_ratio_size, place
from segformer.photos import Photo, as_photo, to_rgb
from segformer.weights.hub import ModelFiles

LabelMap = Image.Image | str | Path | NDArray[Any] | Tensor

_STEPS = ("do_resize", "do_rescale", "do_normalize")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageProcessor:
    """The steps between a PIL image and the model's input; the defaults are those of SegFormer on ADE20K.

    ``size`` is (height, width) in pixels, which ``resize_mode`` says how photos of another shape come to: "squash", as
    transformers does, "keep" or "crop" (segformer/geometry.py). ``resample`` is PIL's number of a filter.
    ``do_reduce_labels`` turns raw ADE20K labels (0 = other, class k at k + 1) into class ids with 255 to ignore.
    ``keep_ratio_scale`` and ``keep_ratio_multiple`` say how the model was scored where photos kept their shape: within
    (long side, short side), each side a multiple. ``label_rule`` says what label maps meant to the training, in the
    words of the code that trains. These and ``resize_mode`` are not transformers', which passes them over.
    """

    do_resize: bool = True
    size: tuple[int, int] = (512, 512)
    resize_mode: str = "squash"
    resample: int = Image.Resampling.BILINEAR.value
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    do_reduce_labels: bool = True
    keep_ratio_scale: tuple[int, int] | None = None
    keep_ratio_multiple: int = 32
    label_rule: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _is_size(self.size):
            raise ValueError(
                f"size is {self.size!r}; it must be (height, width), both above 0, {MOST_PIXELS} pixels at most"
            )
        if (
            not isinstance(self.resample, int)
            or isinstance(self.resample, bool)
            or self.resample not in list(Image.Resampling)
        ):
            raise ValueError(f"resample is {self.resample!r}; PIL's filters are {[f.value for f in Image.Resampling]}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode is {self.resize_mode!r}; it is one of {', '.join(RESIZE_MODES)}")
        if self.keep_ratio_scale is not None and not _is_size(self.keep_ratio_scale):
            raise ValueError(
                f"keep_ratio_scale is {self.keep_ratio_scale!r}; it must be (long side, short side), "
                f"{MOST_PIXELS} pixels at most"
            )
        if not _is_size((self.keep_ratio_multiple,) * 2):
            raise ValueError(f"keep_ratio_multiple is {self.keep_ratio_multiple!r}; it must be a number of 1 to 8192")
        for name in ("do_resize", "do_rescale", "do_normalize", "do_reduce_labels"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if not isinstance(self.label_rule, Mapping | None):
            raise ValueError(f"label_rule is {self.label_rule!r}; it must be an object of entries")
        if not _is_number(self.rescale_factor):
            raise ValueError(f"rescale_factor is {self.rescale_factor!r}; it must be a number")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(_is_number, values))):
                raise ValueError(f"{name} is {values!r}; it must be three numbers, one for each channel")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; deviations are above 0")
        with np.errstate(all="ignore"):
            is_finite = bool(self._levels.isfinite().all())
        if not is_finite:
            raise ValueError(
                f"rescale_factor {self.rescale_factor}, image_mean {self.image_mean} and image_std {self.image_std} "
                "make infinities of pixels"
            )

    def __repr__(self) -> str:
        """The steps that a photo takes, in one line."""
        filters = {each.value: each.name.lower() for each in Image.Resampling}
        height, width = self.size
        how = {"squash": "resize to {}", "keep": "fit into {}, padded", "crop": "cover {}, cropped"}[self.resize_mode]
        sized = how.format(f"{height} x {width} ({filters[self.resample]})")
        steps = [sized] if self.do_resize else []
        if self.do_rescale:
            steps.append("/ 255" if self.rescale_factor == 1 / 255 else f"* {self.rescale_factor}")
        if self.do_normalize:
            steps.append(f"mean {self.image_mean}, std {self.image_std}")
        steps.append("labels reduced: 0 to 255, k to k - 1" if self.do_reduce_labels else "labels as they are")
        if self.keep_ratio_scale:
            steps.append(f"scored within {self.keep_ratio_scale}, in multiples of {self.keep_ratio_multiple}")
        return f"ImageProcessor({'; '.join(steps)})"

    def __call__(
        self, image: Photo | Sequence[Photo], label_map: LabelMap | Sequence[LabelMap] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Turn one photo, or a list of them, and the label maps that belong to them, into tensors.

        A photo is of any form that ``photos.as_photo`` takes, but a PIL image, whose label map lies as it does, is not
        turned by its EXIF orientation. A label map is a PIL image, a file, or a (H, W) array or tensor of integers.

        Shapes: one photo -> float32 (3, H, W) and int64 (H, W), or None without a label map; a list adds a batch axis.
        Raises ValueError for an empty photo and for a label map of another size than its photo.
        """
        if not _are_several(image):
            if _are_several(label_map):
                raise ValueError("one image takes one label map, not a list")
            photo = image if isinstance(image, Image.Image) else as_photo(image)  # type: ignore[arg-type]
            if label_map is None:
                return self.image_to_tensor(photo), None
            upright = _as_label_map(label_map)  # type: ignore[arg-type]
            if upright.size != photo.size:
                raise ValueError(f"image is {photo.size} but its label map {upright.size} (width, height)")
            return self.image_to_tensor(photo), self.labels_to_tensor(upright)
        label_maps = [None] * len(image) if label_map is None else label_map
        if not _are_several(label_maps) or len(label_maps) != len(image) or not image:
            raise ValueError(f"{counted(len(image), 'image')} and as many label maps are needed, at least one of each")
        pairs = [self(one, labels) for one, labels in zip(image, label_maps, strict=True)]
        labels = [label for _, label in pairs if label is not None]
        return torch.stack([tensor for tensor, _ in pairs]), torch.stack(labels) if labels else None

    def place(self, width: int, height: int, whole: bool = False, at: tuple[float, float] | None = None) -> Placement:
        """Where a photo of so many pixels lies in what the model sees of it, as ``geometry.place`` decides.

        With ``whole`` nothing of it is cut away, as where a photo is segmented; a crop else begins ``at`` shares of the
        room for it, down and across, or is the middle one.
        """
        if not self.do_resize:
            return Placement.filling((height, width))
        return place(self.resize_mode, self.size, width, height, whole, at)

    def place_keeping_ratio(self, width: int, height: int, scale: float = 1.0) -> Placement:
        """Where a photo lies that keeps its shape, so many times as large as ``keep_ratio_scale`` or 2048 x 512 say."""
        long_limit, short_limit = self.keep_ratio_scale or PAPER_SCALE
        limits = int(long_limit * scale), int(short_limit * scale)
        return Placement.filling(keep_ratio_size(width, height, limits, self.keep_ratio_multiple))

    def image_to_tensor(self, image: Image.Image, placement: Placement | None = None) -> Tensor:
        """(3, H, W) float32 from an image of any mode, placed as photos usually are, or so; padding is 0."""
        image = to_rgb(image)
        placement = placement or self.place(*image.size)
        image = placement.resize(image, self.resample)
        pixels = torch.empty(3, image.height, image.width)
        for levels, channel, plane in zip(self._levels, image.split(), pixels, strict=True):
            places = torch.from_numpy(np.array(channel)).flatten().int()  # of 4 bytes; numpy would make them of 8
            torch.index_select(levels, 0, places, out=plane.view(-1))
        return placement.pad(pixels, 0)

    def labels_to_tensor(self, label_map: Image.Image, placement: Placement | None = None) -> Tensor:
        """(H, W) int64, reduced if ``do_reduce_labels``, placed as its photo is; padding is 255."""
        placement = placement or self.place(*label_map.size)
        label_map = placement.resize(label_map, Image.Resampling.NEAREST)
        labels = np.array(label_map)
        if labels.ndim != 2:
            raise ValueError(f"label map has mode {label_map.mode}; it needs one channel of class ids")
        return placement.pad(torch.from_numpy(self.reduce_labels(labels).astype(np.int64)), 255)

    def reduce_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Raw ids to class ids where ``do_reduce_labels`` says so: 0 and 255 become 255, k becomes k - 1."""
        if not self.do_reduce_labels:
            return labels
        if labels.dtype == np.uint8:
            return np.where(labels == 255, labels, labels - np.uint8(1))  # 0 wraps round to 255
        return np.where((labels == 0) | (labels == 255), 255, labels.astype(np.int64) - 1)

    @cached_property
    def _levels(self) -> Tensor:
        """What each of the 256 levels of each channel becomes, (3, 256)."""
        ramp = np.tile(np.arange(256, dtype=np.float64), (3, 1))
        levels = (ramp * self.rescale_factor if self.do_rescale else ramp).astype(np.float32)
        if not self.do_normalize:
            return torch.from_numpy(levels)
        mean, std = (np.array(values, dtype=np.float32)[:, None] for values in (self.image_mean, self.image_std))
        return torch.from_numpy((levels - mean) / std)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> ImageProcessor:
        """Read the ``preprocessor_config.json`` of a folder or Hub id, or beside a weights file, in either form.

        A model without one gets what transformers does without it, and that is logged. ``changes`` replace entries,
        such as ``do_reduce_labels=True``. Raises ValueError for one that is no entry.
        """
        changes = _known(changes, list(cls.__dataclass_fields__))
        path, where = _find_config(source, revision, token, local_files_only)
        try:
            entries = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(entries, dict):
                raise ValueError(f"holds a {type(entries).__name__}, not an object of entries")
            processor = cls.from_dict(entries | changes)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path or where}: {error}") from error
        if path is None:
            logger.warning("no %s in %s; taking SegFormer's defaults: %r", PROCESSOR_NAME, where, processor)
        return processor

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> ImageProcessor:
        """Build from the entries of a ``preprocessor_config.json``, where ``reduce_labels`` is the older name.

        A step that is null there is left out, as in transformers; any other null says nothing.
        """
        chosen = {name: entries[name] for name in cls.__dataclass_fields__ if entries.get(name) is not None}
        chosen |= {name: False for name in _STEPS if name in entries and entries[name] is None}
        if "size" in chosen:
            chosen["size"] = _read_size(chosen["size"])
        for name in ("image_mean", "image_std", "keep_ratio_scale"):
            if isinstance(chosen.get(name), list):
                chosen[name] = tuple(chosen[name])
        for name in ("image_mean", "image_std"):
            if isinstance(chosen.get(name), int | float):  # of all three channels
                chosen[name] = (float(chosen[name]),) * 3
        older = entries.get("reduce_labels")
        chosen.setdefault("do_reduce_labels", False if older is None else older)
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a ``preprocessor_config.json`` that transformers 4 and 5 open."""
        height, width = self.size
        entries = asdict(self)
        if self.keep_ratio_scale is None:
            del entries["keep_ratio_scale"], entries["keep_ratio_multiple"]
        if self.label_rule is None:
            del entries["label_rule"]
        if self.resize_mode == "squash":
            del entries["resize_mode"]
        return {
            **entries,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "image_processor_type": "SegformerImageProcessor",
            "size": {"height": height, "width": width},
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json`` into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        write_atomically(Path(folder) / PROCESSOR_NAME, text + "\n")


def _find_config(
    source: str | Path, revision: str | None, token: str | bool | None, local_files_only: bool
) -> tuple[Path | None, str]:
    """The configuration of a processor, or None for a model that has none, and where it was looked for."""
    if Path(source).is_file():
        beside = Path(source).with_name(PROCESSOR_NAME)
        return (beside if beside.is_file() else None), f"the folder of {source}"
    files = ModelFiles(str(source), revision, token, local_files_only)
    path = files.find(PROCESSOR_NAME)
    if path is None and (files.find(CONFIG_NAME) is None or not files.lacks(PROCESSOR_NAME)):
        raise FileNotFoundError(f"no {PROCESSOR_NAME} in {files.describe()}")
    return path, f"folder {source}" if files.folder else f"Hub repository {str(source)!r}"


def _known(changes: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The changes, under today's names. Raises ValueError for one of another name."""
    changes = dict(changes)
    if "reduce_labels" in changes:
        changes.setdefault("do_reduce_labels", changes.pop("reduce_labels"))
    for name in changes:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            cure = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
            raise ValueError(f"ImageProcessor has no {name}; {cure}")
    return changes


def _are_several(images: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _as_label_map(labels: LabelMap) -> Image.Image:
    """A label map of any form as an image of its values, upright as far as it says so itself."""
    if isinstance(labels, Image.Image):
        return labels
    if isinstance(labels, str | Path):
        try:
            with Image.open(labels) as opened:
                return ImageOps.exif_transpose(opened)
        except FileNotFoundError:
            raise FileNotFoundError(f"no label map {labels}") from None
        except Exception as error:  # Pillow's decoders raise what they like for damaged files
            raise ValueError(f"{labels} is not a readable label map: {error}") from error
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 2 or values.dtype.kind not in "bui" or 0 in values.shape:
        raise ValueError(f"label map is {values.shape} {values.dtype}; it must be (H, W) integers")
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise ValueError(f"label map holds {values.min()} to {values.max()}; class ids are from 0")
    return Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.int32))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_size(value: object) -> bool:
    if not (isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))):
        return False
    return bool(value[0] * value[1] <= MOST_PIXELS)


def _read_size(size: object) -> tuple[int, int]:
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, tuple):  # from a caller: JSON has none
        return size
    if isinstance(size, list) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    raise ValueError(f"size is {size!r}; it must be one number, or height and width")
