"""The committed page of networks is what its command prints."""

import pytest

from flaxcnn.inspect.model_page import model_page
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_committed_page_is_up_to_date():
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    for committed, made in zip(lines, model_page(), strict=True):
        assert committed == made
