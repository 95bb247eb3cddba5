"""Measures how fast images reach the network, beside torch's DataLoader, in one run.

    pip install -e '.[benchmark]'
    python -m benchmarks.input_pipeline --output benchmarks/results/input_pipeline.json

Pictures: 2,000 JPEGs of 500x375, pieces of photographs that scikit-image brings along, at quality 90; training
crops of 224 (8 to 100 % of the area, aspect 3/4 to 4/3), half of them mirrored in torch; ours are on the device.

    one core      decode and crop in one process, one after another: what a core can do
    stream        flaxcnn.data.loading.streaming with as many processes as cores, batches of 256
    DataLoader    torch.utils.data.DataLoader, as many processes, on PIL images the transforms of torchvision's
                  training script: crop, mirror, to float, normalise
    to uint8      the same without the last two

Then the loop's own step, LeNet-5 on 28x28 images in memory, batch 128: with the batches of an epoch as the loop
draws them, and with one and the same batch. All take turns; a figure is the median of the turns, and a ratio the
median of the ratios within a turn, which a machine that is faster at one time than at another does not upset.
"""

import argparse
import contextlib
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import machine

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
HEIGHT, WIDTH, SIZE, BATCH, EPOCHS = 375, 500, 224, 256, 2
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def write_images(folder: Path, count: int) -> None:
    """Writes JPEGs in two class folders: pieces of photographs of at least half their size, scaled to one size."""
    import cv2
    import skimage.data

    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for number in range(count):
        whole = photographs[number % len(photographs)]
        height = int(rng.uniform(0.5, 1.0) * min(whole.shape[0], whole.shape[1] * HEIGHT / WIDTH))
        width = int(height * WIDTH / HEIGHT)
        top, left = (rng.integers(0, whole.shape[axis] - side + 1) for axis, side in ((0, height), (1, width)))
        piece = cv2.resize(
            whole[top : top + height, left : left + width], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), piece[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def measure_one_core(folder: Path) -> float:
    """Returns the images/s of one process with one thread."""
    from flaxcnn.data.loading.worker import configure_process

    dataset = _dataset(folder)
    configure_process()
    images = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    count = len(dataset.source) // BATCH * BATCH
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        examples = list(range(first, first + BATCH))
        dataset.decode_into(images, 0, examples, dataset.source.items(examples))
    return count / (time.perf_counter() - start)


def measure_stream(folder: Path, workers: int) -> float:
    """Returns the images/s of our processes, once they have delivered a batch."""
    from flaxcnn.data.loading.sampler import BatchIndices, training_indices
    from flaxcnn.data.loading.worker_pool import WorkerPool

    dataset = _dataset(folder)

    def indices() -> Iterator[BatchIndices]:
        for epoch in range(EPOCHS):
            for step in range(len(dataset.source) // BATCH):
                sizes = {"batch_size": BATCH, "num_examples": len(dataset.source)}
                yield BatchIndices(epoch, training_indices(0, epoch, step, **sizes), np.ones(BATCH, np.float32))

    with WorkerPool({"train": dataset}, rows={"train": BATCH}, workers=workers) as pool:
        return _rate(batch["image"].copy() for batch in pool.batches("train", indices(), print))


def measure_loader(folder: Path, workers: int, normalized: bool) -> float:
    """Returns the images/s of torch's DataLoader, once it has delivered a batch."""
    import torch
    import torch.utils.data

    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    class Pictures(torch.utils.data.Dataset):
        """Pictures as torchvision's ImageFolder reads and its transforms cut, mirror and convert them."""

        def __init__(self):
            self.paths = sorted(folder.rglob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int):
            path = self.paths[index]
            image = _pil_crop(path)
            if normalized:  # as ConvertImageDtype and Normalize do
                image = image.to(torch.float32).div_(255).sub_(mean).div_(std)
            return image, int(path.parent.name)

    # The epochs as one, because the loader's workers stand idle between two.
    epochs = torch.utils.data.ConcatDataset([Pictures()] * EPOCHS)
    loader = torch.utils.data.DataLoader(
        epochs, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
    )
    return _rate(images for images, _ in loader)


def _pil_crop(path: Path):
    import torch
    from PIL import Image

    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    width, height = image.size
    for _ in range(10):
        area = random.uniform(*AREA) * width * height
        ratio = np.exp(random.uniform(*np.log(RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = width, height
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # PILToTensor


def _rate(batches: Iterator) -> float:
    next(batches)
    start, count = time.perf_counter(), sum(1 for _ in batches)
    return count * BATCH / (time.perf_counter() - start)


def _dataset(folder: Path):
    from flaxcnn.data.dataset import ImageDataset
    from flaxcnn.data.sources.opening import open_source

    source = open_source(f"folder:{folder}", "train+test")
    return ImageDataset(source, (SIZE, SIZE, 3), crop="random_resized", crop_area=AREA, crop_ratio=RATIO)


def measure_loop(steps: int, repeats: int) -> dict[str, list[float]]:
    """Returns the images/s of the compiled step: "real" with the loop's batches, "constant" with one alone."""
    import jax

    from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
    from flaxcnn.data.loading.loader import open_loaders
    from flaxcnn.parallel.memory import memory_for_data
    from flaxcnn.parallel.strategy import Strategy
    from flaxcnn.training.compiled_steps import compile_steps
    from flaxcnn.training.experiment import make_experiment
    from flaxcnn.training.plan import Plan
    from flaxcnn.training.setup import open_dataset

    config = TrainConfig(
        batch_size=128,
        duration=f"{steps} steps",
        model=ModelConfig(name="lenet5"),
        data=DataConfig(name="digits", image_size=28),
        optimizer=OptimizerConfig(learning_rate=0.01),
        parallel=ParallelConfig(strategy="jit"),
    )
    dataset = open_dataset(config, "train", training=True)
    experiment = make_experiment(config, dataset.source.class_names, dataset.image_shape)
    strategy = Strategy("jit")
    plan = Plan(config, len(dataset.source), strategy)
    found = {"real": [], "constant": []}
    sizes = {"train": config.batch_size}
    with open_loaders(config.data, strategy, {"train": dataset}, sizes, memory_for_data()) as loaders:
        train = loaders["train"]
        optimizer = experiment.optimizer(plan.per_epoch)
        shapes, create_loop_state = strategy.creation(lambda: experiment.create_loop_state(optimizer))
        loop_state = create_loop_state()
        take_step = compile_steps(experiment, plan, shapes, train, per_call=1)

        def seconds(next_batch: Callable) -> float:
            nonlocal loop_state
            start = time.perf_counter()
            for _ in range(steps):
                loop_state = take_step(loop_state, next_batch(busy=loop_state.state.step), step=0)
            jax.block_until_ready(loop_state)
            return time.perf_counter() - start

        with contextlib.closing(train.batches(plan.batch_indices(1))) as batches:
            one = batches.next()
        for kind in itertools.islice(itertools.cycle(("real", "constant")), 2 * repeats + 2):
            if kind == "real":
                with contextlib.closing(train.batches(plan.batch_indices(1))) as batches:
                    rate = steps * config.batch_size / seconds(batches.next)
            else:
                rate = steps * config.batch_size / seconds(lambda busy: one)
            found[kind].append(rate)
    return {kind: rates[1:] for kind, rates in found.items()}  # the first is for warming up


def main() -> None:
    """Measures everything, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=machine.cores())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and Pillow")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    workers = arguments.workers
    if arguments.measure:
        kind, folder = arguments.measure
        measure = {
            "one core": measure_one_core,
            "stream": lambda folder: measure_stream(folder, workers),
            "DataLoader": lambda folder: measure_loader(folder, workers, normalized=True),
            "DataLoader to uint8": lambda folder: measure_loader(folder, workers, normalized=False),
        }[kind]
        print(measure(Path(folder)))
        return

    kinds = ("one core", "stream", "DataLoader", "DataLoader to uint8")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        for _ in range(arguments.repeats):
            for kind in kinds:
                python = arguments.torch_python if "DataLoader" in kind else sys.executable
                command = [python, "-m", "benchmarks.input_pipeline", "--workers", str(workers)]
                command += ["--measure", kind, folder]
                done = subprocess.run(command, cwd=machine.ROOT, check=True, stdout=subprocess.PIPE, text=True)
                rates[kind].append(float(done.stdout.split()[-1]))
    rates |= {f"loop, {kind} batches": found for kind, found in measure_loop(50, 30).items()}

    def ratio(kind: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[kind], rates[other], strict=True))

    ratios = {
        "stream / DataLoader": ratio("stream", "DataLoader"),
        "stream / DataLoader to uint8": ratio("stream", "DataLoader to uint8"),
        "stream / (workers x one core)": ratio("stream", "one core") / workers,
        "loop, real / constant": ratio("loop, real batches", "loop, constant batches"),
    }
    for kind, found in rates.items():
        median = statistics.median(found)
        print(f"{kind:<24} {median:>10,.0f} images/s   ({min(found):,.0f} to {max(found):,.0f})")
    for name, value in ratios.items():
        print(f"{name:<32} {value:.3f}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"hardware": machine.hardware(), "workers": workers, "images_per_second": rates, "ratios": ratios}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
