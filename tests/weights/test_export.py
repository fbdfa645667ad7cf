"""Graphs for other runtimes: they are the model, open in every axis they should be, and appear only if they agree."""

from __future__ import annotations

import errno
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from PIL import Image

from data import SceneParse150
from segformer import ConfusionMatrix, ImageProcessor, Segformer, Segmenter, fullres
from segformer.export import parse_arguments
from segformer.export import run as export_command
from segformer.pictures import palette
from segformer.weights.export import METADATA_NAME, OPSET, export, made_photo
from segformer.weights.int8 import Examples
from segformer.weights.tracing import FoldedDecoder, resize

pytestmark = pytest.mark.slow  # an export takes most of a minute

PHOTO_SIZES = [(40, 64), (130, 77), (64, 96), (301, 250)]  # width, height; the model sees 96 x 64


def run(path: Path, values: np.ndarray) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def photo_of(width: int, height: int) -> Image.Image:
    return made_photo().resize((width, height))


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 33, 129), (2, 3, 131, 67), (1, 3, 70, 94)], ids=str)
def test_the_logits_of_the_graph_are_those_of_the_model(shape: tuple[int, ...], graph: Path, source: Path) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = Segformer.from_pretrained(source)(images)
    torch.testing.assert_close(torch.from_numpy(run(graph, images.numpy())), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", PHOTO_SIZES, ids=str)
def test_the_label_map_of_a_whole_graph_is_that_of_the_resized_photo_at_its_own_size(
    size: tuple[int, int], whole: Path, source: Path
) -> None:
    photo = photo_of(*size)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    seen = Image.fromarray(resize(pixels, (64, 96))[0].permute(1, 2, 0).numpy().astype(np.uint8))
    as_it_is = replace(ImageProcessor.from_pretrained(source), do_resize=False)
    with torch.inference_mode():
        logits = Segformer.from_pretrained(source)(as_it_is.image_to_tensor(seen)[None])
    expected = fullres.plain_argmax(logits, (photo.height, photo.width)).numpy()
    found = run(whole, np.asarray(photo)[None])
    assert len(np.unique(expected)) > 1
    assert found.dtype == np.uint8
    assert (found != expected).sum() <= 1e-4 * expected.size


def test_the_graphs_say_what_goes_in_and_out_by_name(graph: Path, whole: Path, onnx: Any) -> None:
    told = {}
    for path in (graph, whole):
        proto = onnx.load(path)
        assert [each.version for each in proto.opset_import if each.domain == ""] == [OPSET]
        for value in (*proto.graph.input, *proto.graph.output):
            axes = value.type.tensor_type.shape.dim
            told[value.name] = [axis.dim_param or axis.dim_value for axis in axes]
    assert told == {
        "images": ["batch", 3, "height", "width"],
        "logits": ["batch", 5, "rows", "columns"],
        "photos": ["batch", "height", "width", 3],
        "label_maps": ["batch", "height", "width"],
    }


def test_what_a_label_means_and_how_photos_are_prepared_travels_along(graph: Path, onnx: Any) -> None:
    told = {each.key: each.value for each in onnx.load(graph).metadata_props}
    assert json.loads(told["id2label"]) == {"0": "벽", "1": "floor", "2": "sky ", "3": "tree", "4": "background"}
    names = ["벽", "floor", "sky ", "tree", "background"]
    assert json.loads(told["palette"]) == palette(5, names).tolist() != palette(5).tolist()
    assert json.loads(told["image_mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(told["image_std"]) == [0.2, 0.3, 0.4]
    assert json.loads(told["size"]) == [64, 96]
    assert math.isclose(json.loads(told["rescale_factor"]), 1 / 255)
    assert len(json.loads(told["provenance"])["weights_sha256"]) == 64


def test_the_whole_graph_in_pt2_is_the_model_and_carries_its_names(source: Path, tmp_path: Path) -> None:
    done = export(source, tmp_path / "model.pt2", whole=True, resize="original")
    assert done.compared.agreement >= 0.9999
    assert done.compared.classes > 1
    extra = {METADATA_NAME: ""}
    module = torch.export.load(done.path, extra_files=extra).module()
    assert json.loads(json.loads(extra[METADATA_NAME])["id2label"])["0"] == "벽"
    for batch in (1, 3):
        found = module(torch.from_numpy(np.array(photo_of(90, 70))).repeat(batch, 1, 1, 1))
        assert found.shape == (batch, 70, 90)


def test_the_folded_decoder_is_the_decoder(source: Path) -> None:
    decoder = Segformer.from_pretrained(source).decoder
    features = [torch.randn(2, channels, 32 >> n, 24 >> n) for n, channels in enumerate((8, 16, 24, 32))]
    with torch.no_grad():
        torch.testing.assert_close(FoldedDecoder(decoder)(features), decoder(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 64), (512, 512), (33, 700)], ids=str)
@pytest.mark.parametrize("photo_size", [(96, 64), (400, 300), (1023, 31), (60, 900)], ids=str)
def test_resizing_is_pillows_within_a_level(size: tuple[int, int], photo_size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*photo_size[::-1], 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    images = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
    found = resize(images, size[::-1])[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1  # of 256: Pillow may round down before across, by weights of 22 bits
    assert np.abs((found - expected).mean()) < 0.01  # and neither is brighter


def test_a_file_that_is_there_is_not_replaced_unasked(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"model.pt2 is there already; pass --overwrite"):
        export(source, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_bytes() == b"precious"


def test_an_encoder_without_a_decoder_is_refused(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("decode_head")}
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(encoder, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="only an encoder"):
        export(tmp_path, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model.tflite", r"ends in .tflite; a graph is a file in .onnx or .pt2"),
        ("model", r"ends in nothing"),
        ("model.v2", r"ends in \.v2"),
        ("gone/model.pt2", r"no folder .*gone to write model.pt2 to"),
        ("folder.pt2", r"is a folder; name a file"),
    ],
)
def test_a_place_that_takes_no_graph_is_refused_before_anything_is_loaded(
    out: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export("no-such/model", tmp_path / out)


def test_missing_packages_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"needs onnx, which is not there .*; pip install onnx onnxscript onnxruntime"):
        export("no-such/model", tmp_path / "model.onnx")


def test_a_processor_whose_filter_the_graph_lacks_is_refused(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    ImageProcessor(size=(64, 96), resample=Image.Resampling.BICUBIC.value).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the processor resizes by bicubic"):
        export(tmp_path, tmp_path / "model.pt2", whole=True)


def test_a_graph_that_a_runtime_runs_otherwise_leaves_nothing(
    onnx: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *words: Any) -> list[np.ndarray]:
            return [np.roll(found, 1, axis=1) for found in super().run(*words)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    (tmp_path / "model.onnx").write_bytes(b"the one before")
    with pytest.raises(ValueError, match=r"was not written, for label maps agree on .*; at least 99.99% must"):
        export(source, tmp_path / "model.onnx", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"the one before"


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match=r"cannot write .* \(No space left on device\); it takes \d+ MiB"):
        export(source, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_what_it_cannot_do_in_one_line(tmp_path: Path) -> None:
    done = programs.run("-m", "segformer.export", tmp_path, tmp_path / "model.pt2")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: no config.json in ")


def test_compiled_code_is_the_model_for_every_size_and_carries_its_names(source: Path, tmp_path: Path) -> None:
    done = export(source, tmp_path / "model.pt2", compiled=True)
    assert done.compared.agreement >= 0.9999
    module = torch._inductor.aoti_load_package(str(done.path))
    assert json.loads(module.get_metadata()["id2label"])["0"] == "벽"
    model = Segformer.from_pretrained(source)
    for shape in [(1, 3, 64, 64), (3, 3, 33, 129)]:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(module(images), model(images), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.onnx", "--compile"], "--compile goes with an OUT that is .pt2, and model.onnx is not"),
        (["model.pt2", "--int8", "photos"], "--int8 goes with an OUT that is .onnx, and model.pt2 is not"),
        (["site/", "--int8", "photos"], "--int8 goes with an OUT that is .onnx, and site/ is not"),
        (["model.onnx", "--runtime", "dist"], "--runtime goes with an OUT that is a folder, and model.onnx is not"),
        (["site/", "--whole"], "--whole goes with an OUT that is .onnx or .pt2, and site/ is not"),
        (["site.v2/", "--compile"], "--compile goes with an OUT that is .pt2, and site.v2/ is not"),
        (["model.onnx", "--resize", "original"], "--resize says how a whole graph sees photos"),
        (["model.onnx", "--annotations", "maps"], "--annotations says what --int8 costs; pass --int8, too"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["runs/toy-1", *words])
    assert message in capsys.readouterr().err


def test_what_an_ending_cannot_hold_is_refused_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.onnx; machine code goes with \.pt2 alone"):
        export("no-such/model", tmp_path / "model.onnx", compiled=True)
    with pytest.raises(ValueError, match=r"ends in \.pt2; an int8 graph goes with \.onnx alone"):
        export("no-such/model", tmp_path / "model.pt2", int8=Examples([]))


# 8 bits


@pytest.fixture
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights decide many pixels by a hair, which 8 bits turn over."""
    monkeypatch.setattr("segformer.weights.export.LEAST_AGREEMENT_INT8", 0.5)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """Photos, and label maps that are what the model sees: in mean IoU, the truth."""
    folder = tmp_path_factory.mktemp("examples")
    segmenter = Segmenter.from_pretrained(source, "cpu")
    for name in ("images", "annotations"):
        (folder / name).mkdir()
    for k, size in enumerate(PHOTO_SIZES):
        photo_of(*size).save(folder / f"images/{k}.png")
        Image.fromarray(segmenter.label_map(photo_of(*size)) + np.uint8(1)).save(folder / f"annotations/{k}.png")
    return folder


@pytest.mark.usefixtures("_lenient")
def test_eight_bits_are_a_fraction_of_the_size_and_say_what_they_cost(
    onnx: Any, source: Path, graph: Path, examples: Path, tmp_path: Path
) -> None:
    words = [str(source), str(tmp_path / "int8.onnx"), "--int8", str(examples / "images")]
    said = export_command(parse_arguments([*words, "--annotations", str(examples / "annotations")]))
    quantised, model = (Segmenter.from_pretrained(each) for each in (tmp_path / "int8.onnx", source))
    told = json.loads({each.key: each.value for each in onnx.load(tmp_path / "int8.onnx").metadata_props}["int8"])
    maps = [(quantised.label_map(photo_of(*size)), model.label_map(photo_of(*size))) for size in PHOTO_SIZES]
    equal, pixels = sum(int((a == b).sum()) for a, b in maps), sum(a.size for a, _ in maps)
    assert (told["photos"], told["scored_photos"], told["pixels"]) == (len(PHOTO_SIZES), len(PHOTO_SIZES), pixels)
    assert told["agreement"] == pytest.approx(equal / pixels)
    assert 0.5 <= told["agreement"] < 1
    matrix = ConfusionMatrix(5)
    for found, truth in maps:
        matrix.update(found, truth)
    assert told["mean_iou"] == 1
    assert told["mean_iou_int8"] == pytest.approx(matrix.scores().mean_iou)
    assert f"agree on {equal / pixels:.2%} of {pixels:,} pixels of 4 photos; mean IoU is " in said
    kinds = [{each.op_type for each in onnx.load(path).graph.node} for path in (graph, tmp_path / "int8.onnx")]
    assert "Conv" in kinds[0]
    assert {"ConvInteger"} <= kinds[1]
    assert "Conv" not in kinds[1]


@pytest.mark.usefixtures("_lenient")
def test_a_whole_graph_of_eight_bits_resizes_as_before(onnx: Any, source: Path, examples: Path, tmp_path: Path) -> None:
    done = export(source, tmp_path / "int8.onnx", whole=True, int8=Examples.of_folder(examples / "images"))
    assert 0.5 <= done.compared.agreement < 1
    assert {each.op_type for each in onnx.load(done.path).graph.node} >= {"MatMul", "ConvInteger"}


def test_eight_bits_that_are_another_model_are_not_written(
    onnx: Any, source: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime import quantization

    def spoilt(given: Path, out: Path, **_: Any) -> None:
        proto = onnx.load(given)
        bias = next(each for each in proto.graph.initializer if list(each.dims) == [5])  # of the classifier
        bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([99, 0, 0, 0, 0]), bias.name))
        onnx.save(proto, out)

    monkeypatch.setattr(quantization, "quantize_dynamic", spoilt)
    with pytest.raises(ValueError, match=r"was not written, for label maps of 8 and 32 bits agree on .*90.00% must"):
        export(source, tmp_path / "int8.onnx", int8=Examples.of_folder(examples / "images"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_photos_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "no photo in"), ("gone", "--int8 .*gone is no folder; name one of photos")):
        words = ["no-such/model", str(tmp_path / "int8.onnx"), "--int8", str(tmp_path / folder)]
        with pytest.raises(FileNotFoundError, match=message):
            export_command(parse_arguments(words))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_weights_lie_ready_in_the_graph(graph: Path, onnx: Any) -> None:
    proto = onnx.load(graph)
    held = {each.name for each in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert convolutions
    assert [node.input[1] for node in convolutions if node.input[1] not in held] == []
    used = {name for node in proto.graph.node for name in node.input}
    assert held <= used


@pytest.mark.real_data
def test_eight_bits_of_the_real_model_keep_most_pixels(
    onnx: Any, ade_checkpoint: Path, real_shards: Path, tmp_path: Path
) -> None:
    scenes = SceneParse150(str(real_shards), "validation")
    for k in range(len(scenes)):
        scenes[k][0].save(tmp_path / f"{k}.png")
    done = export(ade_checkpoint, tmp_path / "int8.onnx", int8=Examples.of_folder(tmp_path))
    assert done.compared.agreement >= 0.98
