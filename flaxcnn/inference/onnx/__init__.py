"""Conversion of the jaxpr of a network to an ONNX model; requires the package `onnx`.

The jaxpr is traced within `flaxcnn.ops.stock_operations`, so it contains only JAX's own operations. Any network
that consists of the operations below can be converted, not only the networks of this package.

    model            entry point: converts a function and its variables to a model, and writes the model to a file
    conversion       walks over the equations of the jaxpr; equations of constants are evaluated
    elementwise      converts operations that compute each value by itself
    reductions       converts convolutions, matrix products, pooling and reductions
    rearrangements   converts operations that move values: reshape, transpose, slice, pad, concatenate, ...
    graph            the graph under construction: its nodes and weights
    values           values of the graph, and the arrays of the jaxpr that they represent
    biases           merges additions of biases into convolutions and matrix products

A value of the graph may differ from the array in the jaxpr that it represents: its axes may be permuted, it may not
be broadcast or flattened yet, and a constant factor may be missing (see `values.Tensor`). Nodes that apply these
changes are added only if an operation needs them, so no transposes are needed between convolutions, which are NCHW
in ONNX.
"""
