"""The page of all networks: `python -m flaxcnn.inspect.model_page > docs/models.md`."""

import sys
from collections.abc import Iterator
from itertools import groupby

from flaxcnn.inspect.summary import giga
from flaxcnn.models import ModelInfo, list_models, model_info

_INTRODUCTION = """\
# The networks

Made by `python -m flaxcnn.inspect.model_page > docs/models.md`; `python -m flaxcnn summary NAME` shows one of them
layer by layer. Counts are computed from the layers' shapes, at the input and with the classes given; nothing is
copied.

* **Parameters** are trainable; running statistics of BatchNorm come besides. Auxiliary heads are not counted.
* **GMACs** are 10^9 multiply-adds of convolutions and dense layers for one image, **Mact** 10^6 elements put out by
  its convolutions.
* **Accuracy** is published, not ours: of the weights that `flaxcnn.load_pretrained(name)` fetches (one central
  crop; the tag is theirs, `model_info(name).weights` has all with their protocol), or else the paper's.
* **Least** is the smallest height and width of the images, in pixels.
"""


def model_page() -> Iterator[str]:
    """Yields the lines of the page, family by family."""
    yield from _INTRODUCTION.splitlines()
    infos = sorted(map(model_info, list_models()), key=lambda info: (info.module.__module__, info.paper))
    for module, family in groupby(infos, key=lambda info: info.module.__module__):
        title, _, description = sys.modules[module].__doc__.strip().partition("\n\n")
        yield from ("", f"## {title.rstrip('.')}", "", *description.splitlines())
        for paper, variants in groupby(family, key=lambda info: info.paper):
            yield from ("", f"**{paper}**", "")
            yield "| name | input | classes | least | parameters | GMACs | Mact | published accuracy | what it is |"
            yield "|---|---|---|---|---|---|---|---|---|"
            yield from map(_row, sorted(variants, key=lambda info: info.parameters))


def _row(info: ModelInfo) -> str:
    cells = (
        f"`{info.name}`",
        "x".join(map(str, info.input_shape)),
        info.num_classes,
        info.minimum_size,
        f"{info.parameters:,}",
        giga(info.macs),
        f"{info.activations / 1e6:.2f}",
        info.accuracy,
        info.summary,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    print("\n".join(model_page()))
