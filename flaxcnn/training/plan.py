"""What is due when in a run, and which examples each of its steps sees."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from flaxcnn.config import TrainConfig, to_steps
from flaxcnn.data.sampler import training_batch
from flaxcnn.data.stream import Request
from flaxcnn.errors import UserError
from flaxcnn.training.parallel import Strategy


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is due when, in steps counted from 1, and which examples a step of this process sees.

    Raises:
      UserError: an epoch has no whole batch, or the devices cannot share one evenly.
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
            raise UserError(f"batch_size is {batch_size}, which {devices} devices cannot share; write {sizes}")
        if (profile := self.config.logging.profile) and profile[1] > self.total:
            raise UserError(f"logging.profile is {profile}, and the run ends with step {self.total:,}")
        parts = self.config.parallel.micro_batches or 1
        if self.share % parts:
            raise UserError(
                f"parallel.micro_batches is {parts}, into which the {self.share} images of a device cannot be cut; "
                f"write a divisor of {self.share}"
            )
        augment = self.config.augment
        if (augment.mixup or augment.cutmix) and self.share // parts % 2:
            raise UserError(
                f"augment.mixup and augment.cutmix mix pairs of images, and {self.share // parts} are taken at a "
                f"time; write a batch_size that gives an even number"
            )

    @property
    def share(self) -> int:
        """Examples a step on each device."""
        return self.config.batch_size // self.strategy.num_devices

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.num_examples // self.config.batch_size

    @property
    def total(self) -> int:
        """Steps of the run."""
        return max(to_steps(self.config.duration, self.per_epoch), 1)

    def ends_epoch(self, step: int) -> bool:
        """Returns whether the step is the last of an epoch, or of the run."""
        return self._due(step, "1 epoch")

    def logs(self, step: int) -> bool:
        """Returns whether a training record is due."""
        return self._due(step, self.config.logging.every) or self.ends_epoch(step)

    def evaluates(self, step: int) -> bool:
        """Returns whether an evaluation is due."""
        return self._due(step, self.config.evaluation.every)

    def observes(self, step: int) -> bool:
        """Returns whether a schedule takes note of an evaluation: as if the run were without an end."""
        return step % max(to_steps(self.config.evaluation.every, self.per_epoch), 1) == 0

    def steps_of_epoch(self, step: int) -> int:
        """Returns how many steps of its epoch are taken after this one."""
        return (step - 1) % self.per_epoch + 1

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is due."""
        return self._due(step, self.config.checkpoint.every)

    def count_to_next(self, step: int, most: int) -> int:
        """Returns how many steps, `most` at the most, may follow a step before the host has something to do."""
        profile = self.config.logging.profile
        pauses = {profile[0] - 1, profile[1]} if profile else ()
        for count in range(1, most):
            after = step + count
            if self.logs(after) or self.evaluates(after) or self.saves(after) or after in pauses:
                return count
        return most

    def requests(self, first: int, at_once: int = 1) -> Iterator[Request]:
        """Yields what this process wants for each step from the first on, to the end of the run.

        Args:
          first: step, counted from 1.
          at_once: how many steps a request is for, at the most. With more than one, its arrays have a second axis
            of steps, of which those that `count_to_next` counts are to be taken, all of one epoch.
        """
        sizes = {"batch_size": self.config.batch_size, "num_examples": self.num_examples}
        step = first - 1
        while step < self.total:
            count = self.count_to_next(step, at_once)
            epoch, start = divmod(step, self.per_epoch)
            batches = [
                training_batch(self.config.seed, epoch, number, **sizes, **self.strategy.process)
                for number in range(start, start + count)
            ]
            batches += batches[-1:] * (at_once - count)  # a program takes arrays of one shape
            examples = np.stack(batches, axis=1) if at_once > 1 else batches[0]
            yield Request(epoch, examples, np.ones(examples.shape, np.float32))
            step += count

    def _due(self, step: int, every: str) -> bool:
        return step % max(to_steps(every, self.per_epoch), 1) == 0 or step == self.total
