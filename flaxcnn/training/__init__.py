"""The training of a network: its state, one step of it, and the loop around that step.

`fit` does all of it, by a configuration. For a loop of one's own: `create_state`, `make_optimizer`,
`make_train_step` and `make_eval_step`, and a `Strategy`, which runs a step on all devices.
"""

from typing import TYPE_CHECKING

from flaxcnn import lazy

if TYPE_CHECKING:
    from flaxcnn.config import TrainConfig
    from flaxcnn.training.evaluation import Evaluation
    from flaxcnn.training.loop import fit
    from flaxcnn.training.optimizer import make_optimizer, make_schedule
    from flaxcnn.training.parallel import Strategy
    from flaxcnn.training.state import TrainState, create_state
    from flaxcnn.training.step import make_eval_step, make_train_step
    from flaxcnn.training.transfer import freeze, scale_learning_rate, select

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

# Not imported here, because a network or a step needs nothing of what the loop does.
if not TYPE_CHECKING:  # a checker that saw it would take every name for one
    __getattr__ = lazy.exports(
        __name__,
        {
            "flaxcnn.config": ("TrainConfig",),
            "flaxcnn.training.evaluation": ("Evaluation",),
            "flaxcnn.training.loop": ("fit",),
            "flaxcnn.training.optimizer": ("make_optimizer", "make_schedule"),
            "flaxcnn.training.parallel": ("Strategy",),
            "flaxcnn.training.state": ("TrainState", "create_state"),
            "flaxcnn.training.step": ("make_eval_step", "make_train_step"),
            "flaxcnn.training.transfer": ("freeze", "scale_learning_rate", "select"),
        },
    )


def __dir__() -> list[str]:
    return list(__all__)
