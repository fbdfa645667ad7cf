"""The datasets of the recipes: SceneParse150 from shards, and the augmentations that train on it."""

from data.sceneparse import SceneParse150, train_test_split

__all__ = ["SceneParse150", "train_test_split"]
