"""Writes the torch files beside it; needs torch (made with 1.13). The tests know the values by formula."""

from pathlib import Path

import torch

HERE = Path(__file__).parent
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def ramp(*shape, dtype=torch.float32):
    numel = torch.Size(shape).numel()
    values = torch.arange(numel) % 2 if dtype is torch.bool else torch.arange(numel)
    return values.reshape(shape).to(dtype)


def state_dict():
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
    state = module.state_dict()  # an OrderedDict with _metadata
    for tensor in state.values():
        tensor.copy_(ramp(*tensor.shape))
    state["1.num_batches_tracked"].fill_(41)
    for name in DTYPES:
        state[f"dtypes.{name}"] = ramp(2, 3, dtype=getattr(torch, name))
    base = ramp(24)
    state["views.transposed"] = ramp(3, 4).t()
    state["views.strided"] = base.reshape(4, 6)[1:, ::2]
    state["views.shared"] = base[6:12]
    state["views.tied"] = state["0.weight"]
    state["scalar"] = torch.tensor(7.5)
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(ramp(2, 2))
    return state


if __name__ == "__main__":
    legacy = {"_use_new_zipfile_serialization": False}
    torch.save(state_dict(), HERE / "state_zip.pth")
    torch.save(state_dict(), HERE / "state_zip_protocol4.pth", pickle_protocol=4)
    torch.save(state_dict(), HERE / "state_legacy.pth", **legacy)
    torch.save(state_dict(), HERE / "state_legacy_protocol4.pth", pickle_protocol=4, **legacy)
    torch.save(torch.nn.Linear(2, 1), HERE / "module.pth")
    torch.save({"epoch": 3, "model": {"weight": ramp(2)}}, HERE / "checkpoint.pth")
    torch.save({"weight": ramp(1).expand(3)}, HERE / "expanded.pth")
    torch.save(ramp(2), HERE / "tensor.pth")
