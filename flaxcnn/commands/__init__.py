"""The command line: `flaxcnn VERB` or `python -m flaxcnn VERB`, where VERB is a subcommand, and `python train.py`.

    main         runs the subcommand that the command line names
    train        `flaxcnn train` and `train.py`; `train_flags`, `flag_hints` and `train_help` belong to it
    evaluate, predict, export, prepare
                 one subcommand each
    networks     the subcommands `list` and `summary`
    arguments    parser and arguments of all subcommands but `train`
    bad_images   messages about images that cannot be read
    termination  SIGTERM as an exception

A subcommand has a function `add_to(verbs)`, which adds its arguments to the parser, and a function that runs it.
Modules that are slow to import are imported only in the latter, so that help and error messages appear at once.
"""
