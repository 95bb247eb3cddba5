"""torchvision's networks as a system, and LeNet-5: eager, or by `torch.compile`; channels last, fused SGD."""

import contextlib

import torch
from torch import nn

from benchmarks.systems.serve import Absent, System, Task, serve

# As in jax_system, which torch's Python may be unable to import.
WEIGHT_DECAY, MOMENTUM, LEARNING_RATE = 1e-4, 0.9, 1e-3

# By what is in the name of an operation of torch, or of a kernel.
KINDS = {
    "convolution": ("conv", "cudnn", "implicit_gemm"),
    "product": ("addmm", "::mm", "gemm"),
    "norm": ("batch_norm", "bn_"),
    "other": (),
}


def lenet5(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """LeNet-5 as taught: flaxcnn's `lenet5`."""
    side = (image_size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )


def build(task: Task) -> nn.Module:
    """Returns the network of a task, in channels last."""
    height, _, channels = task.image_shape
    if task.network == "lenet5":
        model = lenet5(channels, task.num_classes, height)
    else:
        torchvision = _import_torchvision()
        if task.network not in torchvision.models.list_models():
            raise Absent("not in torchvision")
        options = {"aux_logits": False, "init_weights": False} if task.network == "googlenet" else {}
        model = torchvision.models.get_model(task.network, num_classes=task.num_classes, **options)
    return model.to(memory_format=torch.channels_last)


def _import_torchvision():
    try:
        import torchvision
    except RuntimeError:
        # Beside a torch that it was not built for, its compiled operators are missing, and it asks for two of them
        # by name. None of the networks for classification uses one.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torchvision


class TorchSystem:
    """A training step, as in torch's examples, or inference; on the GPU if there is one."""

    packages = ("torch",)

    def __init__(self, task: Task):
        self.task = task
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        # As JAX does by default.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.training = task.mode == "training"
        model = build(task).to(self.device).train(self.training)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
        )
        height, width, channels = task.image_shape
        images = torch.randn(task.batch, channels, height, width, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(task.num_classes, (task.batch,), device=self.device)
        self.half = task.dtype == "bfloat16"
        if self.half and not self.training:  # parameters too, which saves converting them
            model, self.images = model.bfloat16(), self.images.bfloat16()
        if task.system == "torch_compile":
            model = torch.compile(model, mode="max-autotune" if self.device.type == "cuda" else "default")
        self.model = model

    def run(self, steps: int) -> None:
        """Runs steps one after another and waits for the last; the first call compiles."""
        with contextlib.nullcontext() if self.training else torch.inference_mode():
            for _ in range(steps):
                if self.training:
                    self._train()
                else:
                    self.model(self.images)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _train(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()

    def profile(self, steps: int) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation, by the time of each operation alone."""
        with torch.profiler.profile() as profiler:
            self.run(steps)
        on_device = self.device.type == "cuda"
        found = dict.fromkeys(KINDS, 0.0)
        for event in profiler.key_averages():
            microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
            kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), None)
            found[kind or "other"] += microseconds / 1e6 / steps
        return found

    def device_peak_bytes(self) -> int | None:
        """Returns the most memory of the accelerator in use so far, or None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def bytes_accessed(self) -> None:
        """Returns None: torch does not count them."""

    def check(self) -> None:
        """Has nothing to compare with."""


def prepare(task: Task) -> System:
    """Prepares "torch" or "torch_compile"."""
    return TorchSystem(task)


if __name__ == "__main__":
    serve(prepare)
