"""The data of the recipes: SceneParse150 and whatever is like it."""

from data.sceneparse import SceneParse150, train_test_split

__all__ = ["SceneParse150", "train_test_split"]
