"""SegformerConfig: its sizes, its checks, and the ``config.json`` it shares with transformers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import transformers
from torch import Tensor

from segformer import VARIANTS, Segformer, SegformerConfig
from segformer.config import read_config

PARAMETERS = {
    "b0": 3_752_694,
    "b1": 13_715_798,
    "b2": 27_461_974,
    "b3": 47_337_814,
    "b4": 64_108_374,
    "b5": 84_708_694,
}
FIELDS = [field.name for field in dataclasses.fields(SegformerConfig)]

SMALL: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (8, 16, 24, 32),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
    "initializer_range": 0.3,  # wide enough that attention shows in the output
}
CHANGES: dict[str, Any] = {
    "depths": (1, 2, 1, 1),
    "hidden_sizes": (8, 16, 24, 40),
    "num_attention_heads": (2, 2, 3, 4),
    "sr_ratios": (4, 4, 2, 1),
    "patch_sizes": (7, 5, 3, 3),
    "strides": (4, 2, 2, 1),
    "mlp_ratios": (4, 4, 4, 2),
    "decoder_hidden_size": 24,
    "num_channels": 4,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.2,
    "classifier_dropout_prob": 0.2,
    "drop_path_rate": 0.5,
    "initializer_range": 0.2,
    "num_labels": 5,
    "id2label": {0: "wall", 1: "sky"},
}
ANOTHER = SegformerConfig(**CHANGES | {"num_labels": 2})


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_has_the_published_number_of_parameters(variant: str) -> None:
    with torch.device("meta"):
        model = Segformer(VARIANTS[variant](num_labels=150))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[variant]


def test_encoder_and_decoder_of_b0_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        model = Segformer(VARIANTS["b0"]())
    parts = [sum(weight.numel() for weight in part.parameters()) for part in (model.encoder, model.decoder)]
    assert parts == [3_319_392, 433_302]


@pytest.mark.parametrize("config", [*(make() for make in VARIANTS.values()), ANOTHER])
def test_config_survives_json(config: SegformerConfig) -> None:
    assert SegformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("config", [VARIANTS["b0"](), VARIANTS["b5"](num_labels=19), ANOTHER])
def test_transformers_reads_the_values_we_write(config: SegformerConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.SegformerConfig.from_pretrained(tmp_path)
    read = {name: getattr(theirs, name) for name in FIELDS}
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    assert read == {name: getattr(config, name) for name in FIELDS}


def test_transformers_reads_the_class_ids_we_write(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ANOTHER.to_dict()))
    assert transformers.SegformerConfig.from_pretrained(tmp_path).label2id == {"wall": 0, "sky": 1}


@pytest.mark.parametrize("config", [VARIANTS["b0"](), VARIANTS["b5"](num_labels=19), ANOTHER])
def test_we_read_the_values_transformers_writes(config: SegformerConfig, tmp_path: Path) -> None:
    transformers.SegformerConfig(**config.to_dict()).save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.real_data
def test_published_ade_config_is_b0_with_150_classes(ade_checkpoint: Path) -> None:
    config = read_config(ade_checkpoint / "config.json")
    assert config == VARIANTS["b0"](id2label=config.id2label, num_labels=150)


@pytest.mark.real_data
def test_published_encoder_config_is_b0_with_1000_classes(encoder_checkpoint: Path) -> None:
    config = read_config(encoder_checkpoint / "config.json")
    assert config == VARIANTS["b0"](id2label=config.id2label, num_labels=1000)


@pytest.mark.real_data
def test_class_names_keep_their_spaces(ade_checkpoint: Path) -> None:
    config = read_config(ade_checkpoint / "config.json")
    assert (config.id2label[7], config.to_dict()["id2label"]["7"]) == ("bed ", "bed ")


@pytest.mark.parametrize("config", [VARIANTS["b0"](), VARIANTS["b3"](drop_path_rate=0.3), VARIANTS["b5"]()])
def test_drop_path_rates_grow_linearly_over_all_blocks(config: SegformerConfig) -> None:
    expected = torch.linspace(0, config.drop_path_rate, sum(config.depths), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(config.drop_path_rates, dtype=torch.float64), expected)


def test_a_single_stage_is_refused() -> None:
    single = {"hidden_sizes": (8,), "num_attention_heads": (1,), "sr_ratios": (1,), "patch_sizes": (3,)}
    with pytest.raises(ValueError, match="at least two stages"):
        SegformerConfig(depths=(1,), strides=(2,), mlp_ratios=(2,), **single)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depths", (2, 2, 0, 2)),
        ("depths", (2, -2, 2, 2)),
        ("depths", (2, True, 2, 2)),
        ("depths", ()),
        ("depths", 2),
        ("hidden_sizes", (32, 64, 160)),
        ("hidden_sizes", (32, 64, 160, 256.0)),
        ("hidden_sizes", (32, 64, 162, 256)),
        ("hidden_sizes", 32),
        ("num_attention_heads", (1, 2, 5, 7)),
        ("sr_ratios", (8, 4, 2, 1, 1)),
        ("sr_ratios", (8, 4, 2, 0)),
        ("patch_sizes", "7333"),
        ("strides", (4, 2, 2, "2")),
        ("mlp_ratios", (4, 4, 4, -1)),
        ("decoder_hidden_size", 0),
        ("decoder_hidden_size", 2.5),
        ("num_channels", True),
        ("hidden_dropout_prob", -0.1),
        ("hidden_dropout_prob", True),
        ("attention_probs_dropout_prob", "0.1"),
        ("classifier_dropout_prob", 1.0),
        ("drop_path_rate", 1.0),
        ("drop_path_rate", float("nan")),
        ("initializer_range", 0.0),
        ("initializer_range", float("inf")),
        ("initializer_range", True),
        ("num_labels", 0),
        ("num_labels", True),
        ("num_labels", 2.0),
        ("id2label", {}),
        ("id2label", {0: "wall", 2: "sky"}),
        ("id2label", {1: "wall", 2: "sky"}),
        ("id2label", {"0": "wall", "1": "sky"}),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match="num_labels" if value == {} else field):
        SegformerConfig(**{field: value})


@pytest.mark.parametrize("classes", [1, 3])
def test_num_labels_and_id2label_must_agree(classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_labels is {classes} but id2label names 2"):
        SegformerConfig(num_labels=classes, id2label={0: "wall", 1: "sky"})


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("hidden_act", "relu"),
        ("model_type", "mobilevit"),
        ("num_encoder_blocks", 3),
        ("id2label", "wall, sky"),
        ("id2label", {"first": "wall"}),
        ("depths", 2),
        ("decoder_hidden_size", "256"),
    ],
)
def test_a_wrong_entry_of_config_json_is_refused_by_its_name_and_file(
    entry: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SegformerConfig().to_dict() | {entry: value}))
    with pytest.raises(ValueError, match=rf"config\.json.*{entry}"):
        read_config(path)


@pytest.mark.parametrize("text", ["", '{"depths": [2, 2', "[1, 2]", "[" * 100_000])
def test_a_damaged_config_json_is_refused_by_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_a_config_json_that_leaves_all_out_means_what_it_means_to_transformers() -> None:
    theirs = transformers.SegformerConfig()
    read = {name: getattr(theirs, name) for name in FIELDS}
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    assert SegformerConfig.from_dict({}) == SegformerConfig(**read)


def test_names_may_be_a_list() -> None:
    assert SegformerConfig(id2label=["wall", "sky"]).id2label == {0: "wall", 1: "sky"}  # type: ignore[arg-type]


def test_names_given_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"id2label has a key that is not a class id: .*'wall'"):
        SegformerConfig.from_dict({"id2label": {"wall": 0, "sky": 1}})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VARIANTS["b0"](), "SegformerConfig(b0, num_labels=150: LABEL_0, LABEL_1, LABEL_2, LABEL_3, ...)"),
        (VARIANTS["b2"](id2label={0: "wall", 1: "bed "}), "SegformerConfig(b2, num_labels=2: wall, bed)"),
        (
            VARIANTS["b1"](drop_path_rate=0.3, num_labels=1),
            "SegformerConfig(b1, drop_path_rate=0.3, num_labels=1: LABEL_0)",
        ),
        (
            SegformerConfig(depths=(1, 1, 1, 1), num_labels=1),
            "SegformerConfig(depths=(1, 1, 1, 1), num_labels=1: LABEL_0)",
        ),
    ],
)
def test_a_config_shows_its_variant_what_differs_and_a_few_names(config: SegformerConfig, expected: str) -> None:
    assert repr(config) == expected


def test_entries_that_no_segformer_reads_are_passed_over() -> None:
    extra = {"downsampling_rates": [1, 4, 8, 16], "image_size": 224, "layer_norm_eps": 1e-6, "problem_type": None}
    assert SegformerConfig.from_dict(SegformerConfig().to_dict() | extra) == SegformerConfig()


def fingerprint(**entries: Any) -> list[Tensor]:
    """The initial weights of a small model, and what it answers in both modes."""
    config = SegformerConfig(**SMALL | entries)
    torch.manual_seed(0)
    model = Segformer(config)
    images = torch.randn(4, config.num_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.manual_seed(0)
        return [
            *(weight.clone() for weight in model.state_dict().values()),
            model.eval()(images),
            model.train()(images),
        ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_equal_configs_make_equal_models() -> None:
    assert same(fingerprint(), fingerprint())


@pytest.mark.parametrize("field", FIELDS)
def test_every_config_field_changes_the_model(field: str) -> None:
    assert field in CHANGES, f"{field} is new: give it another value in CHANGES"
    assert not same(fingerprint(), fingerprint(**{field: CHANGES[field]})), f"nothing reads {field}"
