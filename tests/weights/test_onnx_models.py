"""A graph in the place of its model: the same classes, the same colours, through the same code; and no stranger's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infer import infer, parse_arguments
from segformer import Segformer, Segmenter, Views
from segformer.pictures import UNTINTED
from segformer.weights.export import export, made_photo

REPOSITORY = Path(__file__).resolve().parents[2]
needs_an_export = pytest.mark.slow  # which takes most of a minute


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    made_photo(130, 77).save(folder / "a.png")
    made_photo(64, 96).save(folder / "b.png")
    return folder


def segmented(photos: Path, checkpoint: Path, out: Path, *flags: str) -> dict[str, bytes]:
    """What infer.py writes, but for where it comes from."""
    words = [str(photos), "--checkpoint", str(checkpoint), "--output-dir", str(out), *flags]
    assert infer(parse_arguments(words)) == []
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


@needs_an_export
def test_infer_writes_with_a_graph_what_it_writes_with_its_model(
    graph: Path, source: Path, photos: Path, tmp_path: Path
) -> None:
    flags = ["--masks", "--scores", "--html", str(tmp_path / "page.html")]
    ours = segmented(photos, source, tmp_path / "model", *flags)
    assert len(ours) > 4
    assert segmented(photos, graph, tmp_path / "graph", *flags) == ours
    entries = [json.loads((tmp_path / name / "segments.json").read_text()) for name in ("model", "graph")]
    for one, other in zip(*entries, strict=True):
        assert [each["label"] for each in one["segments"]] == [each["label"] for each in other["segments"]]
        scores = [[each["score"] for each in entry["segments"]] for entry in (one, other)]
        np.testing.assert_allclose(*scores, atol=2e-6)  # six digits of which are written
    assert entries[1][0]["provenance"]["checkpoint"] == "model.onnx"
    assert len(entries[1][0]["provenance"]["weights_sha256"]) == 64


@needs_an_export
def test_infer_writes_with_a_whole_graph_what_it_writes_with_its_model(
    whole: Path, source: Path, photos: Path, tmp_path: Path
) -> None:
    segmented(photos, source, tmp_path / "model")
    segmented(photos, whole, tmp_path / "graph")
    for name in ("a_labels.png", "b_labels.png"):
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("model", "graph"))
        assert (one != other).mean() < 0.01  # of a small photo; a level may be rounded to its neighbour


@needs_an_export
@pytest.mark.parametrize(
    "views",
    [Views(flip=True), Views(scales=(0.75, 1.25)), Views(window=64), Views("keep-ratio"), Views("original"), Views(70)],
    ids=str,
)
def test_a_graph_sees_every_view_that_its_model_sees(views: Views, graph: Path, source: Path) -> None:
    photo = made_photo(150, 110)
    ours, theirs = (Segmenter.from_pretrained(each, "cpu", views=views) for each in (source, graph))
    np.testing.assert_allclose(ours.probabilities(photo, [0, "sky"]), theirs.probabilities(photo, [0, 2]), atol=1e-5)
    assert (ours.label_map(photo) != theirs.label_map(photo)).mean() <= 1e-3


@needs_an_export
def test_sizes_steps_and_classes_are_those_of_the_model(graph: Path, source: Path) -> None:
    ours, theirs = Segmenter.from_pretrained(source, "cpu"), Segmenter.from_pretrained(graph)
    assert theirs.model.config == ours.model.config
    assert theirs.processor == ours.processor
    assert (theirs.colours == ours.colours).all()
    assert tuple(theirs.colours[4]) == UNTINTED


def retold(onnx: Any, graph: Path, out: Path, **changes: str | None) -> Path:
    """The graph with other metadata; None takes an entry away."""
    proto = onnx.load(graph)
    told = {each.key: each.value for each in proto.metadata_props} | changes
    del proto.metadata_props[:]
    for name, text in told.items():
        if text is not None:
            proto.metadata_props.add(key=name, value=text)
    onnx.save(proto, out)
    return out


@needs_an_export
def test_colours_are_those_that_the_file_tells(graph: Path, onnx: Any, photos: Path, tmp_path: Path) -> None:
    colours = [[k, 2 * k, 255 - k] for k in range(5)]
    own = retold(onnx, graph, tmp_path / "own.onnx", palette=json.dumps(colours))
    segmented(photos, own, tmp_path / "out")
    found = Image.open(tmp_path / "out/a_labels.png").getpalette()
    assert found is not None
    assert found[:15] == np.ravel(colours).tolist()


FORGED: dict[str, dict[str, str | None]] = {
    "says nothing of 'id2label'": {"id2label": None},
    "says nothing of 'config'": {"config": None},
    "palette is none": {"palette": "[[0, 0, 0]]"},
    "palette is none: it": {"palette": json.dumps([[0, 0, 256]] * 5)},
    "gives 5 logits for 4 classes": {
        "id2label": json.dumps(dict.fromkeys(map(str, range(4)), "x")),
        "palette": json.dumps([[0, 0, 0]] * 4),
    },
    "id2label is a int": {"id2label": "3"},
    "size is ": {"size": "[-1, 5]"},
    "image_mean is ": {"image_mean": '["a", 0, 0]'},
    "Expecting value": {"image_std": "hello"},
    "depths": {"config": '{"depths": [1]}'},
    "argument after \\*\\*|not a mapping|is not": {"config": "[1, 2]"},
}


@needs_an_export
@pytest.mark.parametrize("message", FORGED)
def test_forged_metadata_is_refused_in_one_line(message: str, graph: Path, onnx: Any, tmp_path: Path) -> None:
    path = retold(onnx, graph, tmp_path / "forged.onnx", **FORGED[message])
    with pytest.raises(ValueError, match=rf"forged\.onnx.*({message})") as error:
        Segmenter.from_pretrained(path)
    assert "\n" not in str(error.value)


@needs_an_export
@pytest.mark.parametrize("flags", [["--scores"], ["--flip"], ["--window", "64"], ["--resize", "original"]], ids=str)
def test_a_whole_graph_refuses_what_it_cannot_do(flags: list[str], whole: Path, photos: Path, tmp_path: Path) -> None:
    words = [str(photos), "--checkpoint", str(whole), "--output-dir", str(tmp_path / "out"), *flags]
    with pytest.raises(ValueError, match=r"export it without --whole"):
        infer(parse_arguments(words))
    assert not (tmp_path / "out").exists()


@needs_an_export
def test_a_graph_is_neither_exported_again_nor_saved_as_a_model(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx is a graph already; export the run"):
        export(graph, tmp_path / "again.onnx")
    with pytest.raises(ValueError, match=r"is a graph, which has no model to save"):
        Segmenter.from_pretrained(graph).save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"model\.onnx is an exported graph, not weights; infer.py runs it"):
        Segformer.from_pretrained(graph)
    assert list(tmp_path.iterdir()) == []


@needs_an_export
def test_infinities_of_a_graph_are_not_taken_for_classes(graph: Path, onnx: Any, tmp_path: Path) -> None:
    proto = onnx.load(graph)
    bias = next(each for each in proto.graph.initializer if list(each.dims) == [5])  # of the classifier
    values = np.full(5, np.inf, np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(proto, tmp_path / "infinite.onnx")
    with pytest.raises(ValueError, match=r"infinite\.onnx gives logits that are not finite"):
        Segmenter.from_pretrained(tmp_path / "infinite.onnx").label_map(made_photo())


# Files that are no graph of ours; none of these needs an export


def stranger(onnx: Any, path: Path, name: str = "input", output: Sequence[int | str] = (1, 5, "h", "w")) -> Path:
    """A graph as others write it: one that gives back what it is given."""
    value, result = (
        onnx.helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, shape)
        for each, shape in ((name, ["b", 5, "h", "w"]), ("out", output))
    )
    node = onnx.helper.make_node("Identity", [name], ["out"])
    made = onnx.helper.make_graph([node], "theirs", [value], [result])
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def empty(_: Any, path: Path) -> Path:
    path.write_bytes(b"")
    return path


def noise(_: Any, path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    return path


def absent(_: Any, path: Path) -> Path:
    return path


def beside(onnx: Any, path: Path) -> Path:
    """One whose weights lie in another file, which may be any."""
    stranger(onnx, path)
    proto = onnx.load(path)
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    proto.graph.initializer.append(tensor)
    proto.graph.node.append(onnx.helper.make_node("Identity", ["w"], ["v"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [1]))
    path.write_bytes(proto.SerializeToString())
    (path.parent / "secret").write_bytes(b"\0\0\0\0")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (stranger, r"is none that python -m segformer\.export wrote: it says nothing of 'input'"),
        (lambda onnx, path: stranger(onnx, path, "images"), r"it says nothing of 'id2label'"),
        (empty, r"is not a graph that onnxruntime runs"),
        (noise, r"is not a graph that onnxruntime runs"),
        (beside, r"is not a graph that onnxruntime runs"),
        (absent, r"no graph "),
    ],
)
def test_a_stranger_s_file_is_refused_in_one_line(
    make: Callable[[Any, Path], Path], message: str, onnx: Any, photos: Path, tmp_path: Path
) -> None:
    path = make(onnx, tmp_path / "theirs.onnx")
    done = programs.run("infer.py", photos, "--checkpoint", path, "--output-dir", tmp_path / "out")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: ")
    assert "theirs.onnx" in line
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_missing_onnxruntime_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    with pytest.raises(ValueError, match=r"model\.onnx needs onnxruntime, .*; pip install onnxruntime$"):
        Segmenter.from_pretrained(tmp_path / "model.onnx")


def test_a_program_is_not_run(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"model\.pt2 is a program, .* is not opened; export to \.onnx"):
        Segmenter.from_pretrained(tmp_path / "model.pt2")


@needs_an_export
def test_a_graph_runs_on_the_cpu_and_says_so(graph: Path) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda'; .*model\.onnx runs on the CPU"):
        Segmenter.from_pretrained(graph, device="cuda")
    assert Segmenter.from_pretrained(graph, device="cpu").device.type == "cpu"


@needs_an_export
def test_the_five_lines_of_the_page_run(
    whole: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs/export.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(list(filter(None, lines.splitlines()))) == 5
    (tmp_path / "whole.onnx").write_bytes(whole.read_bytes())
    made_photo().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(lines, found)
    expected = Segmenter.from_pretrained(source, "cpu").label_map("photo.jpg")
    assert (found["label_map"] != expected).mean() <= 1e-3
    assert found["names"]["4"] == "background"
