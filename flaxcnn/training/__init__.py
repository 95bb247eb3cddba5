"""Training: the training state, the training step, and the training loop.

`fit` runs the training that a configuration describes. To write your own loop, use `create_state`,
`make_optimizer`, `make_train_step` and `make_eval_step`, and use `Strategy` to run a step on all devices.

    setup             checks the configuration, opens the data and builds the network: a `Run`
    experiment        the network, with its preprocessing and augmentation
    plan              at which steps to log, evaluate and save, and which examples each step uses
    train_step        the training step; `losses` and `batch_parts` belong to it
    eval_step         the evaluation step
    metrics           the sums that both steps return
    state             the arrays that a step updates
    optimizer         optimizer and learning-rate schedules; `finetune` changes them for some layers
    compiled_steps    the training step, compiled for all devices
    loop              the training loop
    milestones        logging, evaluation and checkpoints between steps
    evaluation        exact evaluation of a split
    report            results at the end of a run
"""

from typing import TYPE_CHECKING

from flaxcnn import lazy

if TYPE_CHECKING:
    from flaxcnn.config import TrainConfig
    from flaxcnn.parallel.strategy import Strategy
    from flaxcnn.training.eval_step import make_eval_step
    from flaxcnn.training.evaluation import Evaluation
    from flaxcnn.training.finetune import freeze, scale_learning_rate, select
    from flaxcnn.training.loop import fit
    from flaxcnn.training.optimizer import make_optimizer, make_schedule
    from flaxcnn.training.state import TrainState, create_state
from flaxcnn.training.train_step import make_train_step

__all__ = [
    "Evaluation",
    "Strategy",
    "TrainConfig",
    "TrainState",
    "create_state",
    "fit",
    "freeze",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "scale_learning_rate",
    "select",
]

# Lazy, so that importing a network or a step does not import the modules that only the loop needs.
if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts every name
    __getattr__ = lazy.exports(
        __name__,
        {
            "flaxcnn.config": ("TrainConfig",),
            "flaxcnn.training.evaluation": ("Evaluation",),
            "flaxcnn.training.loop": ("fit",),
            "flaxcnn.training.optimizer": ("make_optimizer", "make_schedule"),
            "flaxcnn.parallel.strategy": ("Strategy",),
            "flaxcnn.training.state": ("TrainState", "create_state"),
            "flaxcnn.training.eval_step": ("make_eval_step",),
            "flaxcnn.training.train_step": ("make_train_step",),
            "flaxcnn.training.finetune": ("freeze", "scale_learning_rate", "select"),
        },
    )


def __dir__() -> list[str]:
    return list(__all__)
