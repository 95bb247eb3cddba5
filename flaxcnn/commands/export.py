"""The subcommand `export`: writes a trained network, or one with published weights, as a program."""

import argparse
import functools
from pathlib import Path

from flaxcnn.commands.arguments import Verbs, add_checkpoint, path, size_or_any
from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path


def add_to(verbs: Verbs) -> None:
    """Adds the `export` subcommand and its arguments to the parser."""
    parser = verbs.add_parser(
        "export",
        help="write a network as a program that needs only JAX, or as ONNX",
        description="Write a network as a program that runs without this package: for JAX, or as ONNX. The program "
        "of a run takes images and returns probabilities; that of a network by name takes normalized images and "
        "returns logits.",
    )
    parser.add_argument(
        "source", metavar="NAME|WORKDIR", help="name of a network, such as resnet50, or folder of a run"
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=path,
        help="file to write, in ONNX if it ends in .onnx; FILE.json will describe the input and the classes",
    )
    parser.add_argument(
        "--weights",
        metavar="TAG|FILE|random",
        help="weights of a network by name: the tag of published weights, a file, or random, which is enough to "
        "measure speed (default: the weights that torchvision uses by default)",
    )
    parser.add_argument(
        "--image-size",
        type=size_or_any,
        metavar="SIZE",
        help="image size of a network by name, in pixels: 224; 224x160, height first; or any (default: the size "
        "that the weights are for)",
    )
    add_checkpoint(parser)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from flaxcnn.models import list_models

    workdir = local_path(arguments.source)
    is_workdir = workdir.is_dir()
    is_name = arguments.source in list_models() and not is_workdir
    if not is_name and not is_workdir:
        hint = nearest(arguments.source, list_models())
        raise UserError(f"{arguments.source} holds no run, and no network has that name{hint}")
    if is_name and (arguments.checkpoint != "latest" or arguments.averaged):
        raise UserError("--checkpoint and --averaged are for work directories; a network by name has --weights")
    if not is_name and (arguments.weights or arguments.image_size):
        raise UserError(
            f"--weights and --image-size are for networks by name; the run in {arguments.source} has its own"
        )
    maps = _export_network(arguments) if is_name else _export_run(arguments, workdir)
    print(f"{arguments.file} maps {maps} ({arguments.file.stat().st_size / 1e6:.1f} MB)")


def _export_run(arguments: argparse.Namespace, workdir: Path) -> str:
    """Exports the network of a run. Returns a description of the program's input and output."""
    from flaxcnn.trained.exporting import export_trained
    from flaxcnn.trained.run import load_trained

    experiment, state = load_trained(workdir, arguments.checkpoint, averaged=arguments.averaged)
    export_trained(experiment, state, arguments.file)
    size = "x".join(map(str, experiment.image_shape))
    return f"uint8 images of {size} to the probabilities of {len(experiment.class_names)} classes"


def _export_network(arguments: argparse.Namespace) -> str:
    """Exports a network by name. Returns a description of the program's input and output."""
    import jax
    import jax.numpy as jnp

    from flaxcnn import create_model, export, load_pretrained, model_info
    from flaxcnn.inference import describe_preprocessing
    from flaxcnn.models.published import default_weights

    info = model_info(arguments.source)
    *own_size, channels = info.input_shape
    tags = {weights.tag: weights for weights in info.weights}
    tags |= {None: default_weights(info.name)} if tags else {}
    weights = tags.get(arguments.weights)
    if weights:
        own_size = weights.crop, weights.crop
    height, width = arguments.image_size or own_size
    preprocessing = None
    if arguments.weights == "random":
        model = create_model(info.name)
        images = jnp.zeros((1, height or own_size[0], width or own_size[1], channels))
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
        names, normalized = None, ""
    elif not (arguments.weights or info.weights):
        raise UserError(
            f"no weights of {info.name} are published; train it and export the folder of the run, or write "
            f"--weights random"
        )
    else:
        model, variables = load_pretrained(info.name, arguments.weights or "default")
        names = info.class_names if model.num_classes == info.num_classes else None
        normalized = f", normalized by mean {info.mean} and standard deviation {info.std},"
        if weights and not arguments.image_size:
            preprocessing = describe_preprocessing(
                (height, width, channels),
                "float32",
                shorter_side=weights.resize,
                interpolation=weights.interpolation,
                mean=info.mean,
                std=info.std,
            )
    shape = (height, width, channels)
    export(arguments.file, model, variables, shape, class_names=names, preprocessing=preprocessing)
    size = f"{height}x{width}x{channels}" if height else f"any size and {channels} channels"
    return f"float32 images of {size}{normalized} to the logits of {model.num_classes} classes"
