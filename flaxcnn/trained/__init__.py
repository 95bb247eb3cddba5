"""Use of trained networks: evaluation, prediction and export with the network of a run.

run               loading the network
datasets          opening the images it is applied to
evaluation        accuracy on a split
prediction        class probabilities, image by image
prediction_files  files of predictions
exporting         a program or ONNX model
"""
