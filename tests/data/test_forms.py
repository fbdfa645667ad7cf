"""Every form in which people hold data gives the same photos and the same class ids as the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from forms import COUNT, FORMS, NAMES, labels, photo

from data import SceneParse150
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.understanding import understand
from segformer.photos import decode_photo

BINARY = LabelRule(2, False, None, True)


def test_there_are_more_than_forty_forms() -> None:
    assert len(FORMS) > 40


@pytest.mark.parametrize("title", FORMS)
def test_every_form_gives_the_photos_and_classes_of_the_plain_one(title: str, tmp_path: Path) -> None:
    form = FORMS[title](tmp_path)
    rule = BINARY if form.flags.binary else SCENE_PARSE_LABELS
    dataset = SceneParse150(tmp_path / form.source, form.split, rule, decode_photo, **form.options)
    found = understand(dataset, form.flags)
    dataset = dataset.with_rule(found.rule)
    assert len(dataset) == COUNT
    for number in range(COUNT):
        image, label_map = dataset[number]
        difference = np.abs(np.asarray(image).astype(int) - photo(number))
        assert difference.max() <= form.photo_tolerance
        expected = labels(number) > 0 if form.binary else labels(number)
        classes = np.array([found.rule.class_of(raw) for raw in range(256)])[np.asarray(label_map)]
        assert np.array_equal(classes, expected)
    if not form.binary and "Cityscapes" not in title:
        assert tuple(found.id2label.values()) == NAMES
