"""The work directory of a run: run.json, checkpoints and metrics. Independent of the network and the step."""
