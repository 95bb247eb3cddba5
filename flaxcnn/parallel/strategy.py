"""Data parallelism: runs a step, written for a per-device batch, on all devices by `jit`, `shard_map` or `pmap`.

All three strategies take and return the same arrays. Every leaf of the train state is replicated: each device holds
a full copy, without a device axis. So a checkpoint does not depend on the strategy.

`jit` with sharded arguments is left out on purpose. XLA would gather the whole batch on every device for a grouped
convolution, and BatchNorm would silently normalize over all devices.
"""

import collections
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcnn.errors import UserError
from flaxcnn.parallel.compilation import quick_compile
from flaxcnn.parallel.program import Program

Array = jax.Array
Device: TypeAlias = Any  # type checkers do not accept `jax.Device` as a type
# Name of the device axis, for the collectives of a step.
AXIS = "devices"


class Strategy:
    """A set of devices, and the JAX transformation that runs a step on all of them.

    Attributes:
      name: "jit", "shard_map" or "pmap".
      axis_name: name of the device axis inside the step, or None under `jit`.
    """

    def __init__(self, name: str = "auto"):
        """Uses all devices of all processes, or only the first device under "jit".

        Args:
          name: "jit", "shard_map" or "pmap"; "auto" is "shard_map" if there are several devices, otherwise "jit".

        Raises:
          UserError: "jit" with several processes, or processes with different numbers of devices.
        """
        # In this order the devices of each process are adjacent, and so are the rows of a batch that it loads.
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
        """Number of devices over all processes."""
        return self._mesh.size

    @property
    def process(self) -> dict[str, int]:
        """Keyword arguments of the sampler: `process_index` and `process_count`."""
        return {"process_index": jax.process_index(), "process_count": jax.process_count()}

    @property
    def device(self) -> Device:
        """The first device of this process."""
        return self._mesh.local_devices[0]

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of replicated arrays, of which every device holds a full copy."""
        return NamedSharding(self._mesh, PartitionSpec())

    def creation(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
        """Prepares to create a replicated pytree, such as a train state.

        Args:
          function: `function() -> tree`, which can be traced by `jax.jit`.

        Returns:
          (abstract, create). `create()` computes the tree and replicates its arrays. `abstract` is the tree of
          their shapes, dtypes and shardings, so that programs can be compiled before `create` is called. Under
          `pmap`, which needs arrays to compile if there are several processes, the tree is computed at once, and
          `abstract` is that tree.
        """
        traced = jax.jit(function, out_shardings=self.replicated).trace()

        def create() -> Any:
            return traced.lower().compile(compiler_options=quick_compile())()

        if self.name == "pmap":
            created = create()
            return created, lambda: created
        return jax.tree.map(lambda leaf: leaf.update(sharding=self.replicated), traced.out_info), create

    def replicate(self, tree: Any) -> Any:
        """Copies host arrays to every device, unsharded. The arrays must be equal in all processes."""

        def put(leaf):
            return jax.make_array_from_process_local_data(self.replicated, leaf, leaf.shape)

        return jax.tree.map(put, tree)

    def shard(self, tree: Any) -> Any:
        """Shards a batch evenly over the devices along its first axis.

        Args:
          tree: host arrays with the rows of the batch that this process loads.

        Returns:
          Arrays for the `sharded` arguments of `compile`.
        """

        def put(rows):
            if self.name == "pmap":
                rows = rows.reshape(self._mesh.local_mesh.size, -1, *rows.shape[1:])
            return jax.make_array_from_process_local_data(NamedSharding(self._mesh, PartitionSpec(AXIS)), rows)

        return jax.tree.map(put, tree)

    def synchronized(self, model: nn.Module) -> nn.Module:
        """Returns a copy of a network whose BatchNorm layers, if any, normalize over the global batch."""
        return model.clone(bn_axis_name=self.axis_name) if hasattr(model, "bn_axis_name") else model

    def compile(
        self,
        function: Callable[..., Any],
        arguments: tuple,
        *,
        sharded: tuple[int, ...],
        donate: tuple[int, ...] = (),
    ) -> Program:
        """Compiles a function, written for a per-device batch, to run on all devices.

        Args:
          function: `function(*arguments, axis_name=...)`. Its results must be equal on every device.
          arguments: arrays, or abstract arrays with their shapes, dtypes and shardings, to compile for.
          sharded: positions of the arguments that `shard` returned. All other arguments are replicated.
          donate: positions of the donated arguments, whose memory a call may reuse.

        Returns:
          A program that is called with the arguments, without `axis_name`.
        """

        def per_device(*arguments):
            return function(*arguments, axis_name=self.axis_name)

        # Traces and profiles show the program by this name.
        per_device.__name__ = per_device.__qualname__ = getattr(function, "__name__", "program")
        count = len(arguments)
        if self.name == "pmap":
            program = jax.pmap(
                per_device,
                axis_name=AXIS,
                in_axes=tuple(0 if number in sharded else None for number in range(count)),
                out_axes=None,
                donate_argnums=donate,
                devices=list(self._mesh.devices.flat),
            )
        elif self.name == "shard_map":
            sharded_function = jax.shard_map(
                per_device,
                mesh=self._mesh,
                in_specs=tuple(PartitionSpec(AXIS) if n in sharded else PartitionSpec() for n in range(count)),
                out_specs=PartitionSpec(),
                # The check changes the order in which gradients of a synchronized BatchNorm are summed. A run would
                # then not continue bit for bit, and would differ from a run under `pmap`.
                check_vma=False,
            )
            program = jax.jit(sharded_function, donate_argnums=donate)
        else:
            program = jax.jit(per_device, donate_argnums=donate)
        # The simulated devices of a CPU share its threads. A second program could occupy threads that a collective
        # of the first program waits for, and both would hang.
        waits = self.num_devices > 1 and self.device.platform == "cpu"
        return Program(program.lower(*arguments).compile(), waits=waits)
