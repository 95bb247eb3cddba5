"""JAX primitives with an implementation for each platform.

JAX's transformations use only the rules of a primitive, never its implementation. The type of the result is that of
JAX's own operation, so the result is sharded in the same way under explicit sharding and in `shard_map`. The
implementation for the platform is selected at lowering, and only this one is traced.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir, xla
from jax.sharding import AbstractMesh, AxisType, NamedSharding, use_abstract_mesh

Array = jax.Array


def primitive(
    name: str,
    *,
    result_type: Callable[..., Array],
    default: Callable[..., Array],
    cpu: Callable[..., Array],
    engine: Callable[..., Array | None] | None = None,
) -> Primitive:
    """Returns a primitive with one result, without rules for derivatives and `vmap`, which the caller adds.

    Args:
      name: name of the primitive in jaxprs and profiles.
      result_type: function `result_type(*operands, **params)` of JAX's operations, whose result has the shape,
        dtype and sharding of the primitive's result; it is traced but never computed.
      default: implementation `default(*operands, **params)`.
      cpu: implementation on CPUs, with the same arguments.
      engine: implementation on CPUs by a library call, which XLA cannot partition. It is used instead of `cpu` in
        programs for one device, and returns None if the library cannot compute the result.
    """
    new = Primitive(name)
    new.def_impl(functools.partial(xla.apply_primitive, new))

    @new.def_abstract_eval
    def _(*types: ShapedArray, **params: Any) -> ShapedArray:
        return type_of(result_type, *types, **params)

    mlir.register_lowering(new, _lowering(default))
    mlir.register_lowering(new, _lowering(cpu, engine), platform="cpu")
    return new


def _lowering(compute: Callable[..., Array], engine: Callable[..., Array | None] | None = None) -> Callable:
    def preferred(*operands: Array, **params: Any) -> Array:
        result = engine(*operands, **params) if engine else None
        return compute(*operands, **params) if result is None else result

    by_operations, by_engine = (mlir.lower_fun(each, multiple_results=False) for each in (compute, preferred))

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        lower = by_engine if engine and _is_for_one_device(context.module_context) else by_operations
        # The implementation is traced for arrays without explicit sharding, so that it may split and merge any
        # axes. The type of the result is known already, and the partitioner sees the operations of the
        # implementation.
        with use_abstract_mesh(AbstractMesh((), ())):
            types = cast(Sequence[ShapedArray], context.avals_in)
            plain = [ShapedArray(each.shape, each.dtype) for each in types]
            return lower(context.replace(avals_in=plain), *operands, **params)

    return rule


def _is_for_one_device(module: mlir.ModuleContext) -> bool:
    """Returns whether each device runs the whole program: XLA does not partition it, and it is not exported."""
    axes: Any = module.axis_context
    if module.lowering_parameters.for_export:
        return False
    if hasattr(axes, "manual_axes"):  # within `shard_map`
        return all(size == 1 or name in axes.manual_axes for name, size in axes.mesh.shape.items())
    return getattr(axes, "num_devices", 1) == 1


def type_of(function: Callable[..., Array], *types: ShapedArray, **params: Any) -> ShapedArray:
    """Returns the type of a function's result: shape, dtype and sharding."""
    return jax.make_jaxpr(functools.partial(function, **params))(*types).out_avals[0]


def explicit_sharding(sharding: NamedSharding) -> NamedSharding | None:
    """Returns the sharding if it is explicit, that is, part of the array's type; otherwise None."""
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
