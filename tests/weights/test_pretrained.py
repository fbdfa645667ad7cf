"""Checkpoints in and out: every dialect loads whole, ours opens everywhere, and what does not fit is refused."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DIALECTS, ENCODERS, FORMS, Weights, assert_same_logits, encoder_only, logits_of, original
from libraries import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from segformer import VARIANTS, Segformer
from segformer.weights import dialects

DECODER = [
    *(f"decode_head.linear_c.{stage}.proj.{tensor}" for stage in range(4) for tensor in ("weight", "bias")),
    "decode_head.linear_fuse.weight",
    *(f"decode_head.batch_norm.{tensor}" for tensor in ("weight", "bias")),
    *(f"decode_head.batch_norm.{tensor}" for tensor in ("running_mean", "running_var", "num_batches_tracked")),
    *(f"decode_head.classifier.{tensor}" for tensor in ("weight", "bias")),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_loads_whole_from_every_kind_of_file(
    dialect: str,
    form: str,
    folder: Path,
    v4: Weights,
    reference: transformers.SegformerForSemanticSegmentation,
    images: Tensor,
    expected: Tensor,
) -> None:
    (folder / "model.safetensors").unlink()
    FORMS[form](DIALECTS[dialect](v4, reference), folder / form)
    model = Segformer.from_pretrained(folder / form)
    assert (model.load_report.missing, model.load_report.unexpected, model.load_report.mismatched) == ([], [], [])
    with torch.no_grad():
        assert_same_logits(model(images), expected)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_loads_by_its_name(form: str, folder: Path, v4: Weights, images: Tensor, expected: Tensor) -> None:
    (folder / "model.safetensors").unlink()
    FORMS[form](v4, folder / form)
    assert_same_logits(logits_of(folder, images), expected)


def test_safetensors_win_over_a_pickle(folder: Path, images: Tensor, expected: Tensor) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    assert_same_logits(logits_of(folder, images), expected)


@pytest.mark.parametrize("classes", [2, 7])
def test_a_config_that_neither_names_nor_counts_classes_leaves_them_to_the_weights(
    classes: int, folder: Path, images: Tensor
) -> None:
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(
        folder, num_labels=classes, ignore_mismatched_sizes=True
    ).eval()
    theirs.save_pretrained(folder)
    assert ("id2label" in json.loads((folder / "config.json").read_text())) == (classes != 2)  # its default is left out
    change_config(folder, id2label=None)
    model = Segformer.from_pretrained(folder)
    assert model.config.id2label == {k: f"LABEL_{k}" for k in range(classes)}
    with torch.no_grad():
        assert_same_logits(model(images), theirs(images).logits)


def test_an_encoder_whose_config_names_no_classes_starts_two(folder: Path, v4: Weights) -> None:
    change_config(folder, id2label=None)
    save_file(encoder_only(v4), folder / "model.safetensors")
    assert Segformer.from_pretrained(folder).config.num_labels == 2


def test_an_encoder_without_a_config_starts_two_classes(tmp_path: Path) -> None:
    weights = dialects.to_v4(Segformer(VARIANTS["b0"]()).state_dict())
    torch.save(encoder_only(weights), tmp_path / "bare.pth")
    assert Segformer.from_pretrained(tmp_path / "bare.pth").config == VARIANTS["b0"](num_labels=2)


def test_a_config_that_says_nothing_of_a_segformer_leaves_its_sizes_to_the_weights(tmp_path: Path) -> None:
    weights = dialects.to_v4(Segformer(VARIANTS["b1"](num_labels=3)).state_dict())
    FORMS["model.safetensors"](original(weights), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "mit_b1", "num_classes": 1000, "mean": [0.5, 0.5, 0.5]}')
    assert Segformer.from_pretrained(tmp_path).config == VARIANTS["b1"](num_labels=3)


def test_four_bands_and_the_width_of_a_decoder_are_told_from_the_shapes(tmp_path: Path) -> None:
    config = VARIANTS["b0"](num_labels=3, num_channels=4, decoder_hidden_size=96)
    FORMS["model.safetensors"](dialects.to_v4(Segformer(config).state_dict()), tmp_path / "bare.safetensors")
    assert Segformer.from_pretrained(tmp_path / "bare.safetensors").config == config


def test_names_may_be_a_list(folder: Path) -> None:
    assert Segformer.from_pretrained(folder, id2label=["wall", "sky"]).config.id2label == {0: "wall", 1: "sky"}


def test_names_that_are_one_text_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="id2label is a str; it maps class ids to names, or lists the names"):
        Segformer.from_pretrained(folder, id2label="wall")


def test_an_unknown_change_of_the_config_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"config_changes has no 'drop_path'; did you mean drop_path_rate\?"):
        Segformer.from_pretrained(folder, config_changes={"drop_path": 0.1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["decode_head.classifier.weight", "segformer.encoder.block.0.0.attention.self.key.bias"]
)
def test_numbers_that_are_not_finite_are_refused_at_load(value: float, name: str, folder: Path, v4: Weights) -> None:
    v4[name].view(-1)[1] = value
    save_file(v4, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: 1 of the \d+ values of \S+ are not finite"):
        Segformer.from_pretrained(folder)


def test_a_report_shows_what_was_loaded_from_where_and_what_was_not(folder: Path, v4: Weights) -> None:
    save_file(encoder_only(v4) | {"classifier.weight": torch.zeros(3, 32)}, folder / "model.safetensors")
    first, *others = repr(Segformer.from_pretrained(folder).load_report).splitlines()
    path = re.escape(str(folder / "model.safetensors"))
    assert re.fullmatch(rf"LoadReport\(\d+ tensors from {path}, in the names of transformers\)", first)
    assert others == [
        f"  16 tensors not in the checkpoint, started anew: {', '.join(DECODER[:4])} and 12 more",
        "  1 tensor of no use to this model, left out: classifier.weight",
    ]


def test_a_new_model_reports_that_nothing_was_loaded(tiny_model: Segformer) -> None:
    assert repr(tiny_model.load_report) == "LoadReport(nothing loaded, all weights are new)"


def test_a_loaded_model_is_in_eval_mode(folder: Path) -> None:
    assert not any(module.training for module in Segformer.from_pretrained(folder).modules())


def test_a_folder_may_be_given_as_text(folder: Path, images: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        assert_same_logits(Segformer.from_pretrained(str(folder))(images), expected)


@pytest.mark.parametrize("dialect", ENCODERS)
def test_an_encoder_alone_starts_a_new_decoder(
    dialect: str,
    folder: Path,
    v4: Weights,
    reference: transformers.SegformerForSemanticSegmentation,
    images: Tensor,
) -> None:
    torch.save(ENCODERS[dialect](v4, reference), folder / "encoder.pth")
    model = Segformer.from_pretrained(folder / "encoder.pth")
    assert model.load_report.missing == DECODER
    with torch.no_grad():
        hidden_states = reference(images, output_hidden_states=True).hidden_states
        for ours, theirs in zip(model.encoder(images), hidden_states, strict=True):
            assert_same_logits(ours, theirs)


def test_heads_of_other_tasks_are_left_out_and_named(folder: Path, v4: Weights) -> None:
    heads = {
        "head.weight": torch.zeros(10, 32),
        "decode_head.conv_seg.weight": torch.zeros(7, 16, 1, 1),
        "auxiliary_head.conv_seg.bias": torch.zeros(7),
    }
    torch.save(original(v4, "backbone.") | heads, folder / "segformer.pth")
    assert Segformer.from_pretrained(folder / "segformer.pth").load_report.unexpected == list(heads)


@pytest.mark.real_data
def test_published_encoder_lacks_a_decoder_and_has_a_classifier_too_many(encoder_checkpoint: Path) -> None:
    report = Segformer.from_pretrained(encoder_checkpoint, num_labels=150).load_report
    assert sorted(report.missing) == sorted(DECODER)
    assert sorted(report.unexpected) == ["classifier.bias", "classifier.weight"]
    assert report.mismatched == []


@pytest.mark.real_data
def test_published_encoder_gives_the_features_of_transformers(encoder_checkpoint: Path, images: Tensor) -> None:
    theirs = transformers.SegformerModel.from_pretrained(encoder_checkpoint).eval()
    with torch.no_grad():
        hidden_states = theirs(images, output_hidden_states=True).hidden_states
        for found, wanted in zip(
            Segformer.from_pretrained(encoder_checkpoint).encoder(images), hidden_states, strict=True
        ):
            assert_same_logits(found, wanted)


def test_what_is_left_untouched_is_logged_in_one_line(
    folder: Path, v4: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(encoder_only(v4), folder / "encoder.pth")
    with caplog.at_level(logging.WARNING, "segformer"):
        Segformer.from_pretrained(folder / "encoder.pth")
    (line,) = caplog.messages
    assert re.search(r"encoder\.pth: 16 tensors not in the checkpoint.*linear_c\.0", line)


def test_the_checkpoints_own_names_in_another_order_are_told_of(
    tiny_model: Segformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path)
    names = list(tiny_model.config.id2label.values())
    Segformer.from_pretrained(tmp_path, id2label=[name.upper() for name in names])
    assert caplog.messages == []
    Segformer.from_pretrained(tmp_path, id2label=[*names[1:], names[0]])
    assert len(caplog.messages) == 1
    told = f"class 0 {names[1]!r}, which the checkpoint has as {names[0]!r}"
    assert told.casefold() in caplog.messages[0]


def opened_by_transformers(folder: Path) -> transformers.SegformerForSemanticSegmentation:
    """The model as transformers reads it, which must lack nothing and leave nothing over."""
    model, report = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def test_what_we_save_gives_the_same_logits_in_transformers(
    folder: Path, tmp_path: Path, images: Tensor, expected: Tensor
) -> None:
    Segformer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert_same_logits(opened_by_transformers(tmp_path / "saved")(images).logits, expected)


def test_what_we_save_has_the_names_transformers_saves(folder: Path, tmp_path: Path) -> None:
    Segformer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    saved, theirs = (load_file(where / "model.safetensors") for where in (tmp_path / "saved", folder))
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[name], theirs[name]) for name in saved)


def test_saving_and_loading_keeps_every_bit(tiny_model: Segformer, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    loaded = Segformer.from_pretrained(tmp_path)
    assert loaded.config == tiny_model.config
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.real_data
def test_a_model_started_from_the_published_encoder_opens_whole_in_transformers(
    encoder_checkpoint: Path, tmp_path: Path, images: Tensor
) -> None:
    model = Segformer.from_pretrained(encoder_checkpoint, id2label={0: "wall", 1: "bed "})
    model.save_pretrained(tmp_path)
    theirs = opened_by_transformers(tmp_path)
    assert theirs.config.id2label == {0: "wall", 1: "bed "}
    with torch.no_grad():
        assert_same_logits(model(images), theirs(images).logits)


@pytest.mark.real_data
def test_what_transformers_saves_after_starting_from_the_encoder_loads_whole(
    encoder_checkpoint: Path, tmp_path: Path, images: Tensor
) -> None:
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(encoder_checkpoint, num_labels=3).eval()
    theirs.save_pretrained(tmp_path)
    ours = Segformer.from_pretrained(tmp_path)
    assert ours.load_report.missing == []
    with torch.no_grad():
        assert_same_logits(ours(images), theirs(images).logits)


@pytest.mark.parametrize("variant", ["b0", "b1", "b2"])
@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_the_variant_of_a_bare_file_is_told_from_its_shapes(variant: str, part: str, tmp_path: Path) -> None:
    config = VARIANTS[variant](num_labels=19)
    weights = dialects.to_v4(Segformer(config).state_dict())
    torch.save(encoder_only(weights) if part == "encoder" else weights, tmp_path / "bare.pth")
    classes = {"num_labels": 19} if part == "encoder" else {}
    assert Segformer.from_pretrained(tmp_path / "bare.pth", **classes).config == config


def test_a_bare_file_of_no_variant_asks_for_its_config(folder: Path, v4: Weights, tmp_path: Path) -> None:
    save_file(v4, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors has depths \[1, 2, 1, 1\].*config\.json"):
        Segformer.from_pretrained(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("classes", [{"num_labels": 3}, {"id2label": {0: "wall", 1: "sky", 2: "tree"}}])
def test_another_number_of_classes_starts_a_new_classifier(
    classes: dict[str, Any], folder: Path, images: Tensor
) -> None:
    model = Segformer.from_pretrained(folder, **classes)
    assert sorted(model.load_report.mismatched) == ["decode_head.classifier.bias", "decode_head.classifier.weight"]
    assert model.load_report.missing == []
    assert not model.decoder.classifier.bias.any()
    assert model(images).shape[1] == model.config.num_labels == len(model.config.id2label) == 3


def test_the_same_number_of_classes_keeps_the_classifier(folder: Path, images: Tensor, expected: Tensor) -> None:
    names = {k: f"class {k}" for k in range(7)}
    model = Segformer.from_pretrained(folder, id2label=names)
    assert model.config.id2label == names
    with torch.no_grad():
        assert_same_logits(model(images), expected)


def test_num_labels_and_id2label_must_agree(folder: Path) -> None:
    with pytest.raises(ValueError, match="num_labels is 3 but id2label names 2"):
        Segformer.from_pretrained(folder, num_labels=3, id2label={0: "wall", 1: "sky"})


def test_config_changes_reach_the_model(folder: Path) -> None:
    model = Segformer.from_pretrained(folder, config_changes={"drop_path_rate": 0.3})
    assert (model.config.drop_path_rate, model.encoder.stages[3].blocks[0].drop_path.rate) == (0.3, 0.3)


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_classifier_that_does_not_fit_names_tensor_and_shapes_and_cure(folder: Path) -> None:
    change_config(folder, id2label={str(k): f"class {k}" for k in range(9)})
    message = (
        r"decode_head\.classifier\.(weight is \[7, 16, 1, 1\] .* \[9, 16, 1, 1\]|bias is \[7\] .* \[9\]) .*num_labels"
    )
    with pytest.raises(ValueError, match=message):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"decoder_hidden_size": 24}, r"decode_head\.\S+ is \[16.*\[24"),
        (
            {"sr_ratios": [8, 4, 4, 1]},
            r"block\.2\.0\.attention\.self\.sr\.weight is \[24, 24, 2, 2\] .*\[24, 24, 4, 4\]",
        ),
        ({"depths": [1, 1, 1, 1]}, r"no place for: segformer\.encoder\.block\.1\.1"),
        ({"depths": [1, 2, 1, 2]}, r"lacks \d+ tensors: segformer\.encoder\.block\.3\.1"),
        ({"num_channels": 4}, r"patch_embeddings\.0\.proj\.weight is \[8, 3, 7, 7\] .*\[8, 4, 7, 7\]"),
    ],
)
def test_weights_that_contradict_their_config_are_refused(entries: dict[str, Any], message: str, folder: Path) -> None:
    change_config(folder, **entries)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{message}"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    [
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.block.1.1.mlp.dense2.bias",
        "decode_head.linear_c.3.proj.weight",
        "decode_head.batch_norm.running_var",
        "decode_head.classifier.bias",
    ],
)
@pytest.mark.parametrize("classes", [{}, {"num_labels": 3}])
def test_a_missing_tensor_is_refused_by_name(name: str, classes: dict[str, int], folder: Path, v4: Weights) -> None:
    del v4[name]
    save_file(v4, folder / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(name)):
        Segformer.from_pretrained(folder, **classes)


def test_a_missing_batch_counter_is_forgiven(folder: Path, v4: Weights, images: Tensor, expected: Tensor) -> None:
    del v4["decode_head.batch_norm.num_batches_tracked"]
    save_file(v4, folder / "model.safetensors")
    assert_same_logits(logits_of(folder, images), expected)


def test_weights_that_were_halved_one_and_all_are_read(folder: Path, v4: Weights, images: Tensor) -> None:
    halved = {name: tensor.half() for name, tensor in v4.items()}
    save_file({name: tensor.half().to(v4[name].dtype) for name, tensor in v4.items()}, folder / "model.safetensors")
    expected = logits_of(folder, images)
    save_file(halved, folder / "model.safetensors")  # the counter of batches, too
    assert_same_logits(logits_of(folder, images), expected)


@pytest.mark.parametrize("name", ["segformer.encoder.norm.weight", "module.decode_head.classifier.weight"])
def test_an_unknown_tensor_is_refused_by_name(name: str, folder: Path, v4: Weights) -> None:
    save_file(v4 | {name: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{re.escape(name)}"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize(
    "again",
    ["norm1.weight", "segformer.stages.0.layer_norm.weight", "block1.0.attn.kv.weight", "encoder.layer_norm.0.weight"],
)
def test_a_tensor_given_in_two_dialects_is_refused(again: str, folder: Path, v4: Weights) -> None:
    original_weights = original(v4)
    twin = original_weights.get(again, v4["segformer.encoder.layer_norm.0.weight"])
    torch.save(v4 | {again: twin.clone()}, folder / "twice.pth")
    with pytest.raises(ValueError, match=r"twice\.pth.*twice"):
        Segformer.from_pretrained(folder / "twice.pth")


@pytest.mark.parametrize("half", ["key", "value"])
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_key_without_its_value_is_refused_by_name(half: str, kind: str, folder: Path, v4: Weights) -> None:
    name = f"segformer.encoder.block.2.0.attention.self.{half}.{kind}"
    del v4[name]
    save_file(v4, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors.* no .*blocks\.0\.attention\.{half}\.{kind}"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_safetensors_file_is_refused(kept: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Segformer.from_pretrained(folder)


def test_a_corrupt_safetensors_header_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Segformer.from_pretrained(folder)


class Trap:
    """Unpickling this as pickle does would create the file named."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run_it(name: str, folder: Path, v4: Weights) -> None:
    sprung = folder / "sprung"
    torch.save(v4 | {"trap": Trap(sprung)}, folder / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*refused"):
        Segformer.from_pretrained(folder / name)
    assert not sprung.exists()


class Bystander:
    """Any class but a tensor."""


@pytest.mark.parametrize(
    "content",
    [
        Bystander(),
        {"weight": Bystander()},
        {"weight": 1.0},
        [torch.zeros(2)],
        torch.zeros(2),
        {"state_dict": [1]},
        None,
    ],
)
def test_a_pickle_of_anything_but_tensors_is_refused(content: object, folder: Path) -> None:
    torch.save(content, folder / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin.*(refused|state_dict)"):
        Segformer.from_pretrained(folder / "model.bin")


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04"])
def test_a_damaged_pickle_is_refused(content: bytes, folder: Path) -> None:
    (folder / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.bin"):
        Segformer.from_pretrained(folder / "model.bin")


def test_an_empty_checkpoint_is_refused(folder: Path) -> None:
    torch.save({}, folder / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin"):
        Segformer.from_pretrained(folder / "model.bin")


def test_another_kind_of_file_is_refused_by_its_suffix(folder: Path) -> None:
    (folder / "tf_model.h5").write_bytes(b"HDF")
    with pytest.raises(ValueError, match=r"tf_model\.h5 is a \.h5 file"):
        Segformer.from_pretrained(folder / "tf_model.h5")


def test_a_folder_without_a_config_says_so(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no config\.json in folder {re.escape(str(folder))}"):
        Segformer.from_pretrained(folder)


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no model\.safetensors .*{re.escape(str(folder))}"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "no such model", "a/b/c.safetensors"])
def test_an_unknown_path_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(source.removeprefix("./"))):
        Segformer.from_pretrained(source)


def test_a_damaged_config_is_refused_by_its_file(folder: Path) -> None:
    (folder / "config.json").write_text('{"depths": [2, 2')
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))}/config\.json"):
        Segformer.from_pretrained(folder)
