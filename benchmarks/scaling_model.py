"""Works out on paper how data parallelism scales, and prints it as Markdown; nothing here is measured.

    python -m benchmarks.scaling_model --network-bandwidth 1.5625

There are P parameters and n nodes of g GPUs. B is a bandwidth in bytes/s a GPU and direction, a the seconds of a
hop: Bi and ai within a node (NVLink), Bx and ax between nodes; a0 starts an all-reduce. Then:

    bytes        V = 4 P: the gradients in float32
    within       reduce-scatter and all-gather in a ring: Ti = 2 (g-1)/g V/Bi in 2 (g-1) hops
    between      all-reduce of V/g, in whichever is faster of
                 a ring: Tx = 2 (n-1)/n V/(g Bx) in 2 (n-1) hops
                 a double tree: Tx = 2 V/(g Bx) in 2 ceil(log2 n) hops
    all-reduce   R(V) = a0 + (hops within) ai + (hops between) ax + max(Ti, Tx), as chunks pass through both at once
    gradients    G = (ceil(V/b) - 1) R(0) + R(V), in buckets of b bytes
    compute      C = images a GPU / images/s of a GPU
    BatchNorm    S = sum over layers of 2 R(8 channels): synchronised, each layer waits for an all-reduce of mean
                 and mean of squares on the way forward, and for another on the way back
    no overlap   efficiency = C / (C + G)
    overlap      efficiency = C / (C + max(G - 2/3 C, R(min(b, V)))): the backward pass, two thirds of the compute,
                 hides everything but the last bucket, which is complete only when it ends
    sync         S more in the denominator, for nothing hides it

Stragglers, input, the host's overheads and traffic of others are not in it. Parameters and channels are flaxcnn's.
"""

import argparse
import dataclasses
import functools
import math

import jax

import flaxcnn

BACKWARD = 2 / 3  # of the compute: each convolution is applied once forward, and twice backward
# NCCL's own estimates in src/graph/tuning.cc, protocol LL: to start an all-reduce, and for a hop over NVLink.
START_SECONDS = 6.8e-6
NODE_HOP_SECONDS = 0.6e-6
# MLPerf Training v4.0, 8 x H200: 7,950. For VGG-16 there is no such figure: assumed as many times slower than
# ResNet-50 as on the RTX 3090 of timm's benchmarks (AMP, NHWC, training: 546 against 1,218 images/s).
IMAGES_PER_SECOND = {"resnet50": 7950.0, "vgg16": 7950.0 * 546 / 1218}


@dataclasses.dataclass(frozen=True)
class Links:
    """What joins the GPUs: bandwidths in bytes/s a GPU and direction, `hop` the seconds from node to node."""

    node_size: int
    node_bandwidth: float
    network_bandwidth: float
    hop: float

    def all_reduce(self, size: float, gpus: int) -> float:
        """Returns the seconds in which GPUs that fill their nodes sum `size` bytes."""
        members, nodes = min(gpus, self.node_size), math.ceil(gpus / self.node_size)
        within = 2 * (members - 1) / members * size / self.node_bandwidth
        start = START_SECONDS + 2 * (members - 1) * NODE_HOP_SECONDS
        share = size / members / self.network_bandwidth
        ring = 2 * (nodes - 1) * self.hop + max(within, 2 * (nodes - 1) / nodes * share)
        tree = 2 * math.ceil(math.log2(nodes)) * self.hop + max(within, 2 * share if nodes > 1 else 0)
        return start + min(ring, tree)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of data parallelism on `gpus` GPUs, of which each computes for `compute` seconds."""

    links: Links
    gpus: int
    compute: float
    gradients: float  # bytes
    bucket: float  # bytes
    channels: tuple[int, ...]  # of each BatchNorm layer

    @property
    def communication(self) -> float:
        """Seconds that the gradients take."""
        extra = math.ceil(self.gradients / self.bucket) - 1
        return extra * self.links.all_reduce(0, self.gpus) + self.links.all_reduce(self.gradients, self.gpus)

    @property
    def synchronisation(self) -> float:
        """Seconds that synchronised BatchNorm takes: two float32 a channel, forward and backward."""
        return sum(2 * self.links.all_reduce(2 * 4 * channels, self.gpus) for channels in self.channels)

    def efficiency(self, overlap: bool, synchronised: bool = False) -> float:
        """Returns the share of the step in which the GPUs compute."""
        exposed = self.communication
        if overlap:
            last = self.links.all_reduce(min(self.bucket, self.gradients), self.gpus)
            exposed = max(exposed - BACKWARD * self.compute, last)
        return self.compute / (self.compute + exposed + synchronised * self.synchronisation)


def batch_norm_channels(name: str) -> tuple[int, ...]:
    """Returns the channels of each BatchNorm layer of a network, without allocating anything."""
    model, shape = flaxcnn.create_model(name), (1, *flaxcnn.model_info(name).input_shape)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), jax.ShapeDtypeStruct(shape, "float32")
    )
    statistics = jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))
    return tuple(leaf.size for path, leaf in statistics if path[-1].key == "mean")


def print_table(steps: list[tuple[Step, int]]) -> None:
    """Prints a line for each step, of that many images a GPU."""
    columns = ["GPUs", "images a GPU", "images a step", "compute, ms", "gradients, ms", "no overlap", "overlap"]
    has_batch_norm = bool(steps[0][0].channels)
    columns += ["sync BatchNorm, ms", "overlap, sync"] if has_batch_norm else []
    print(f"| {' | '.join(columns)} |\n{'|---:' * len(columns)}|")
    for step, images in steps:
        cells = [f"{step.gpus:,}", f"{images}", f"{step.gpus * images:,}"]
        cells += [f"{1e3 * seconds:.1f}" for seconds in (step.compute, step.communication)]
        cells += [f"{step.efficiency(overlap):.1%}" for overlap in (False, True)]
        if has_batch_norm:
            cells += [f"{1e3 * step.synchronisation:.1f}", f"{step.efficiency(True, synchronised=True):.1%}"]
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> None:
    """Prints a table for each network: by number of GPUs, then on the last number of them with smaller batches."""
    parser = argparse.ArgumentParser(description="What efficiency to expect of data parallelism, on paper.")
    add = parser.add_argument
    add("--networks", nargs="+", default=list(IMAGES_PER_SECOND), help="names of flaxcnn.list_models()")
    add("--images-per-second", nargs="+", type=float, help="of a GPU that trains alone, for each network")
    add("--batch-per-device", type=int, default=256)
    add("--gpus", nargs="+", type=int, default=(8, 16, 32, 64, 128, 256, 512, 1024))
    add("--node-size", type=int, default=8, help="GPUs a node (8)")
    add("--node-bandwidth", type=float, default=450, help="GB/s a GPU and direction within a node (450)")
    add("--network-bandwidth", type=float, default=50, help="GB/s a GPU and direction between nodes (50)")
    add("--latency", type=float, default=5, help="microseconds of a hop between nodes (5)")
    add("--bucket", type=float, default=30, help="MiB that XLA combines into one all-reduce (30)")
    add("--gradient-bytes", type=int, default=4, help="bytes a parameter; flaxcnn sums float32 (4)")
    flags = parser.parse_args()
    speeds = flags.images_per_second or [IMAGES_PER_SECOND.get(name) for name in flags.networks]
    if len(speeds) != len(flags.networks) or None in speeds:
        parser.error("give --images-per-second one number for each of --networks")
    links = Links(flags.node_size, flags.node_bandwidth * 1e9, flags.network_bandwidth * 1e9, flags.latency / 1e6)

    sizes = [(gpus, flags.batch_per_device) for gpus in flags.gpus]
    sizes += [(flags.gpus[-1], flags.batch_per_device // part) for part in (2, 4, 8)]
    print(f"Nodes of {flags.node_size} GPUs; a GPU sends {flags.node_bandwidth:g} GB/s within a node and", end=" ")
    print(f"{flags.network_bandwidth:g} GB/s between nodes.\n")
    for name, speed in zip(flags.networks, speeds, strict=True):
        parameters, channels = flaxcnn.model_info(name).parameters, batch_norm_channels(name)
        gradients = parameters * flags.gradient_bytes
        print(f"`{name}`: {parameters:,} parameters, {gradients / 1e6:.1f} MB of gradients;", end=" ")
        print(f"{len(channels)} BatchNorm layers, {sum(channels):,} channels;", end=" ")
        print(f"{speed:,.0f} images/s a GPU.\n")
        model = functools.partial(Step, links, gradients=gradients, bucket=flags.bucket * 2**20, channels=channels)
        print_table([(model(gpus, images / speed), images) for gpus, images in sizes])


if __name__ == "__main__":
    main()
