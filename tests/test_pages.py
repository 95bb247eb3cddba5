"""The pages: their links lead somewhere, the paths and recipes that they name exist, and README's example runs."""

import re

import jax.numpy as jnp
import pytest

from flaxcnn.config.recipes import find_recipe
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Folders whose files pages name in backquotes.
FOLDERS = ("flaxcnn", "tests", "benchmarks", "docs", "examples", "configs")
# CONTRIBUTING.md says how to write files of these names.
TO_WRITE = ("NAME", "tiny")
every_page = pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_paths_and_recipes_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)", text)
    recipes = re.findall(r"--config=([a-z][\w./]*\w)", text)
    paths += re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    for path in paths:
        there = (ROOT / path).exists() or (ROOT / "flaxcnn" / path).exists()
        assert there or any(name in path for name in TO_WRITE), path
    for recipe in recipes:
        assert any(name in recipe for name in TO_WRITE) or find_recipe(recipe), recipe


def test_the_first_example_of_readme_runs():
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    names = {}
    exec(example, names)
    assert names["logits"].shape == (8, 10) and names["logits"].dtype == jnp.float32
    assert set(names["updated"]) == {"batch_stats"} and list(names["feature_maps"])[:2] == ["stem", "stage1"]
    assert names["probabilities"].shape == (8, 10)
