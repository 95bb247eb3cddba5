"""The subcommand `evaluate`: measures the accuracy of a trained network on a split of a dataset."""

import argparse
from typing import TYPE_CHECKING

from flaxcnn.commands.arguments import Verbs, add_checkpoint, add_output, add_workdir, path, positive
from flaxcnn.commands.termination import terminated_by_exception

if TYPE_CHECKING:
    from flaxcnn.data.dataset import ImageDataset
    from flaxcnn.data.sources.folder import FolderSource
    from flaxcnn.data.sources.protocol import Source
    from flaxcnn.training.experiment import Experiment
    from flaxcnn.training.state import TrainState


def add_to(verbs: Verbs) -> None:
    """Adds the `evaluate` subcommand and its arguments to the parser."""
    parser = verbs.add_parser(
        "evaluate",
        help="measure the accuracy of a trained network",
        description="Evaluate a trained network on a dataset: accuracy and confusion matrix.",
    )
    add_workdir(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="another dataset with the same classes: a TFDS name or folder:PATH (default: the dataset of the run)",
    )
    parser.add_argument(
        "--split", metavar="SPLIT", help="split to evaluate, such as test or train[:100] (default: the test split)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="IMAGES",
        help="images per batch over all devices; does not change the result (default: as in training)",
    )
    parser.add_argument(
        "--data-dir", type=path, metavar="DIR", help="folder with prepared TFDS datasets (default: as in training)"
    )
    add_output(parser)
    add_checkpoint(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flaxcnn.data.sources import opening
    from flaxcnn.trained import prediction_files
    from flaxcnn.trained.datasets import open_data, open_other_data
    from flaxcnn.trained.evaluation import evaluate
    from flaxcnn.trained.run import load_trained
    from flaxcnn.training import report

    if arguments.output:
        prediction_files.check_writable(arguments.output)
    experiment, state = load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    config = experiment.config
    opening.refuse_data_dir(arguments.data or config.data.name, arguments.data_dir, "--data-dir")
    config.evaluation.batch_size = arguments.batch_size or config.evaluation.batch_size
    config.data.data_dir = str(arguments.data_dir) if arguments.data_dir else config.data.data_dir
    config.data.bad_images = arguments.bad_images or config.data.bad_images
    if arguments.data:
        dataset = open_other_data(experiment, arguments.data, arguments.split, workdir=arguments.workdir)
        split = dataset.source.split
        whole = " (the folder has no splits)" if split == "all" and not arguments.split else ""
        print(f"{arguments.data}: split {split}{whole}, {len(dataset):,} images")
    else:
        dataset = open_data(experiment, arguments.split)
    evaluation = evaluate(experiment, state, dataset)
    report.print_evaluation(
        Console(),
        experiment,
        evaluation,
        split=dataset.source.split,
        checkpoint=f"checkpoint of step {int(state.step):,}",
    )
    if arguments.output:
        _write_predictions(arguments, experiment, state, dataset)
        print(f"predictions of {evaluation.count:,} images in {arguments.output}")


def _write_predictions(
    arguments: argparse.Namespace, experiment: "Experiment", state: "TrainState", dataset: "ImageDataset"
) -> None:
    from flaxcnn.trained import prediction_files
    from flaxcnn.trained.prediction import predict

    found = predict(
        experiment,
        state,
        dataset,
        batch_size=min(len(dataset), experiment.config.evaluation.batch_size),
        on_bad=lambda index, reason: None,  # the evaluation has reported it
    )
    files, names = _files_of(dataset.source), experiment.class_names
    with terminated_by_exception(), prediction_files.writing(arguments.output, names, top=5) as write:
        for prediction in found:
            file = {"file": files.file(prediction.index)} if files else {}
            image = {"index": prediction.index, **file, "label": names[prediction.label]}
            write(image, prediction.probabilities)


def _files_of(source: "Source") -> "FolderSource | None":
    """Returns the `FolderSource` of a split, which knows the paths of its images; None for TFDS datasets."""
    from flaxcnn.data.sources.folder import FolderSource
    from flaxcnn.data.sources.relabelling import RelabelledSource

    if isinstance(source, RelabelledSource):
        source = source.source
    return source if isinstance(source, FolderSource) else None
