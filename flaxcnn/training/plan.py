"""The plan of a run: after which steps to log, evaluate and save, and which examples each step uses."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from flaxcnn.config import TrainConfig, to_steps
from flaxcnn.data.loading.sampler import BatchIndices, training_indices
from flaxcnn.errors import UserError
from flaxcnn.parallel.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run: when to log, evaluate and save, and which examples this process loads for each step.

    Steps are counted from 1.

    Attributes:
      config: the configuration.
      num_examples: number of examples in the training split.
      strategy: placement on the devices.

    Raises:
      UserError: an epoch has no whole batch, the batch size is not divisible by the number of devices or
        micro-batches, or a setting exceeds the length of the run.
    """

    config: TrainConfig
    num_examples: int
    strategy: Strategy

    def __post_init__(self):
        batch_size, devices = self.config.batch_size, self.strategy.num_devices
        if not self.per_epoch:
            raise UserError(
                f"batch_size is {batch_size}; split {self.config.data.train_split!r} of "
                f"{self.config.data.name} has only {self.num_examples} examples"
            )
        if self.total >= 2**31:
            raise UserError(f"duration is {self.config.duration!r}, {self.total:,} steps; it must be below 2**31")
        if batch_size % devices:
            less = batch_size // devices * devices
            sizes = " or ".join(str(size) for size in (less, less + devices) if size)
            raise UserError(
                f"batch_size is {batch_size}, which {devices} devices cannot divide evenly; write {sizes}"
            )
        if (profile := self.config.logging.profile) and profile[1] > self.total:
            raise UserError(f"logging.profile is {profile}, and the run ends with step {self.total:,}")
        micro_batches = self.config.parallel.micro_batches or 1
        if self.per_device_batch % micro_batches:
            raise UserError(
                f"parallel.micro_batches is {micro_batches}, which does not divide the {self.per_device_batch} "
                f"images of a device; write a divisor of {self.per_device_batch}"
            )
        augment, images = self.config.augment, self.per_device_batch // micro_batches
        if (augment.mixup or augment.cutmix) and images % 2:
            raise UserError(
                f"augment.mixup and augment.cutmix mix pairs of images, and a micro-batch has {images}; write a "
                f"batch_size that gives an even number"
            )

    @property
    def per_device_batch(self) -> int:
        """Number of examples per step and device."""
        return self.config.batch_size // self.strategy.num_devices

    @property
    def per_epoch(self) -> int:
        """Number of steps per epoch."""
        return self.num_examples // self.config.batch_size

    @property
    def total(self) -> int:
        """Number of steps in the whole run."""
        return max(to_steps(self.config.duration, self.per_epoch), 1)

    @property
    def frozen_steps(self) -> int:
        """Number of steps before the frozen layers train, too; 0 if they never do or nothing is frozen."""
        return to_steps(self.config.model.unfreeze, self.per_epoch) if self.config.model.unfreeze else 0

    def ends_epoch(self, step: int) -> bool:
        """Returns whether a step is the last of an epoch or of the run."""
        return self._due(step, "1 epoch")

    def logs(self, step: int) -> bool:
        """Returns whether training metrics are logged after a step."""
        return self._due(step, self.config.logging.every) or self.ends_epoch(step)

    def evaluates(self, step: int) -> bool:
        """Returns whether the network is evaluated after a step."""
        return self._due(step, self.config.evaluation.every)

    def feeds_schedule(self, step: int) -> bool:
        """Returns whether the "plateau" schedule uses the evaluation after a step.

        It does not use an evaluation that is due only because the run ends, so that a run can be extended.
        """
        return step % max(to_steps(self.config.evaluation.every, self.per_epoch), 1) == 0

    def steps_of_epoch(self, step: int) -> int:
        """Returns the number of steps taken in the current epoch, up to and including a step."""
        return (step - 1) % self.per_epoch + 1

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after a step."""
        return self._due(step, self.config.checkpoint.every)

    def batch_indices(self, first: int, steps_per_call: int = 1) -> Iterator[BatchIndices]:
        """Yields indices of the examples that this process loads, from step `first` to the end of the run.

        Args:
          first: first step, counted from 1.
          steps_per_call: maximum number of steps in one call of the compiled steps. If it is above 1, the arrays
            have a second axis of this length, with one step per column; the first `count` steps are taken.
        """
        sizes = {"batch_size": self.config.batch_size, "num_examples": self.num_examples}
        step = first - 1
        while step < self.total:
            count = self._steps_until_due(step, steps_per_call)
            epoch, start = divmod(step, self.per_epoch)
            batches = [
                training_indices(self.config.seed, epoch, number, **sizes, **self.strategy.process)
                for number in range(start, start + count)
            ]
            batches += batches[-1:] * (steps_per_call - count)  # the compiled program has fixed shapes
            indices = np.stack(batches, axis=1) if steps_per_call > 1 else batches[0]
            yield BatchIndices(epoch, indices, np.ones(indices.shape, np.float32), count)
            step += count

    def _steps_until_due(self, step: int, most: int) -> int:
        """Returns how many steps, up to `most`, can follow a step before the host must log, evaluate or save."""
        profile = self.config.logging.profile
        pauses = {self.frozen_steps, *((profile[0] - 1, profile[1]) if profile else ())}
        for count in range(1, most):
            after = step + count
            if self.logs(after) or self.evaluates(after) or self.saves(after) or after in pauses:
                return count
        return most

    def _due(self, step: int, every: str) -> bool:
        return step % max(to_steps(every, self.per_epoch), 1) == 0 or step == self.total
