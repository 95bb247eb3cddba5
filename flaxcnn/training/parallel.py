"""How the step of one device's share runs on all devices: by `jit`, `shard_map` or `pmap`.

The step itself is written once, for a share. All three strategies take and give the same arrays, every leaf of the
state whole on every device and without an axis of devices, so that a checkpoint knows nothing of them.

Left out on purpose: `jit` that partitions the step by the shardings of its arguments. XLA then gathers the whole
batch on every device for a grouped convolution, and BatchNorm is silently computed over all devices.
"""

import collections
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcnn.errors import UserError
from flaxcnn.training.compilation import in_haste

Array = jax.Array
Device: TypeAlias = Any  # `jax.Device` is no type to a checker
# The name of the axis of devices, for the collectives of the step.
AXIS = "devices"


class Program:
    """A function compiled for a strategy's devices, called with arrays of those shapes.

    Attributes:
      compiled: what JAX made of it.
    """

    def __init__(self, compiled: jax.stages.Compiled, *, waits: bool):
        self.compiled, self._waits = compiled, waits

    def __call__(self, *arguments: Any) -> Any:
        """Runs it; the results may not be there yet."""
        results = self.compiled(*arguments)
        return jax.block_until_ready(results) if self._waits else results


class Strategy:
    """Some devices and a way to run one program on them.

    Attributes:
      name: "jit", "shard_map" or "pmap".
      axis_name: what the step calls the axis of devices, or None under `jit`.
    """

    def __init__(self, name: str = "auto"):
        """Takes all devices of all processes, or the first under "jit"; "auto" is "shard_map" if there are several.

        Raises:
          UserError: "jit" with several processes, or processes with different numbers of devices.
        """
        # In this order the devices of a process lie side by side, and so do its rows of a batch.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.name = name if name != "auto" else "shard_map" if len(devices) > 1 else "jit"
        if self.name == "jit":
            if jax.process_count() > 1:
                raise UserError(
                    f"parallel.strategy 'jit' uses one device, and there are {jax.process_count()} processes; "
                    f"write 'shard_map', or start one process"
                )
            devices = devices[:1]
        counts = collections.Counter(device.process_index for device in devices).values()
        if len(set(counts)) > 1:
            raise UserError(f"the processes have {sorted(counts)} devices; each must have as many as the others")
        self.axis_name = None if self.name == "jit" else AXIS
        self._mesh = Mesh(np.array(devices), (AXIS,))

    @property
    def num_devices(self) -> int:
        """Number of devices, over all processes."""
        return self._mesh.size

    @property
    def process(self) -> dict[str, int]:
        """Which of how many processes this is, as the sampler asks for it."""
        return {"process_index": jax.process_index(), "process_count": jax.process_count()}

    @property
    def device(self) -> Device:
        """One of this process's devices; all are alike."""
        return self._mesh.local_devices[0]

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what lies whole on every device."""
        return NamedSharding(self._mesh, PartitionSpec())

    def creation(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
        """Returns arguments to compile with like the arrays that a function makes, and what makes those.

        They are made alike on every device. The arguments are their shapes, except for pmap, which among several
        processes asks for arrays.
        """
        traced = jax.jit(function, out_shardings=self.replicated).trace()

        def create() -> Any:
            return traced.lower().compile(compiler_options=in_haste())()

        if self.name == "pmap":
            made = create()
            return made, lambda: made
        return jax.tree.map(lambda leaf: leaf.update(sharding=self.replicated), traced.out_info), create

    def replicate(self, tree: Any) -> Any:
        """Puts host arrays, the same in every process, on every device."""

        def put(leaf):
            return jax.make_array_from_process_local_data(self.replicated, leaf, leaf.shape)

        return jax.tree.map(put, tree)

    def split(self, tree: Any) -> Any:
        """Puts this process's rows of a batch on its devices, a share on each, as compiled programs take them."""

        def put(rows):
            if self.name == "pmap":
                rows = rows.reshape(self._mesh.local_mesh.size, -1, *rows.shape[1:])
            return jax.make_array_from_process_local_data(NamedSharding(self._mesh, PartitionSpec(AXIS)), rows)

        return jax.tree.map(put, tree)

    def synchronized(self, model: nn.Module) -> nn.Module:
        """Returns a network whose BatchNorm, if it has any, normalises over the batch of all devices."""
        return model.clone(bn_axis_name=self.axis_name) if hasattr(model, "bn_axis_name") else model

    def compile(
        self,
        function: Callable[..., Any],
        arguments: tuple,
        *,
        split: tuple[int, ...],
        donate: tuple[int, ...] = (),
    ) -> Program:
        """Compiles a function of one device's share for all devices.

        Args:
          function: `function(*arguments, axis_name=...)`, whose results are the same on every device.
          arguments: arrays like those that it will be called with.
          split: the numbers of the arguments that come from `split`; all others are whole on every device.
          donate: the numbers of the arguments that a call uses up.

        Returns:
          The program, called like the function without its axis.
        """

        def on_share(*arguments):
            return function(*arguments, axis_name=self.axis_name)

        # Traces and profiles show the program by this name.
        on_share.__name__ = on_share.__qualname__ = getattr(function, "__name__", "program")
        count = len(arguments)
        if self.name == "pmap":
            program = jax.pmap(
                on_share,
                axis_name=AXIS,
                in_axes=tuple(0 if number in split else None for number in range(count)),
                out_axes=None,
                donate_argnums=donate,
                devices=list(self._mesh.devices.flat),
            )
        elif self.name == "shard_map":
            shares = jax.shard_map(
                on_share,
                mesh=self._mesh,
                in_specs=tuple(PartitionSpec(AXIS) if n in split else PartitionSpec() for n in range(count)),
                out_specs=PartitionSpec(),
                # With the check the gradients of a synchronised BatchNorm are added in another order: a run would
                # not go on to the last bit, and would differ from one under `pmap`.
                check_vma=False,
            )
            program = jax.jit(shares, donate_argnums=donate)
        else:
            program = jax.jit(on_share, donate_argnums=donate)
        # The devices of one CPU share its threads: a second program under way may keep from the first those that
        # its sums still wait for, and both would stand still.
        waits = self.num_devices > 1 and self.device.platform == "cpu"
        return Program(program.lower(*arguments).compile(), waits=waits)
