"""Splits of a folder of images: its own, or a fifth of each class for testing."""

from pathlib import Path

from flaxcnn.data.sources.folder_scan import Files, by_hash, holds_images, subfolders

# In a folder without splits, one in this many images of each class is in the test split.
TEST_EVERY = 5
# Folders with these names, in upper or lower case, are splits, even if they directly hold an image.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def are_splits(folders: list[Path]) -> bool:
    """Returns whether the subfolders of a folder of images are splits rather than classes.

    They may be splits even if one of them directly holds images, such as "unsorted/1.jpg" beside
    "train/cat/1.jpg".
    """
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    with_images = [folder for folder in folders if holds_images(folder)]
    if len(named) == len(folders) or not with_images:
        return True
    return any(folder not in with_images and any(map(holds_images, subfolders(folder))) for folder in named)


def split_classes(classes: dict[str, list[str]]) -> dict[str, Files]:
    """Splits the images of each class into "train" and "test", by a hash of their paths.

    Args:
      classes: {name of a class: paths of its images}.
    """
    train, test = [], []
    for name, files in classes.items():
        ordered = by_hash((name, file) for file in files)
        for_test = max(len(ordered) // TEST_EVERY, 1) if len(ordered) > 1 else 0
        test += ordered[:for_test]
        train += ordered[for_test:]
    return {"train": by_hash(train), "test": by_hash(test)}
