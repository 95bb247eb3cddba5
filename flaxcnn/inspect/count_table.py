"""Prints the counts of all networks: `python -m flaxcnn.inspect.count_table > flaxcnn/models/counts.txt`."""

from collections.abc import Iterator

from flaxcnn.models import list_models, model_info


def count_table() -> Iterator[str]:
    """Measures all networks; yields a line for each with name, parameters, multiply-adds and activations."""
    for name in list_models():
        cost = model_info(name).cost
        yield f"{name} {cost.parameters} {cost.macs} {cost.activations}"


if __name__ == "__main__":
    print("\n".join(count_table()))
