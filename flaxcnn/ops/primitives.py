"""JAX primitives with an implementation for each platform.

JAX's transformations use only the rules of a primitive, never its implementation. The type of the result is that of
JAX's own operation, so the result is sharded in the same way under explicit sharding and in `shard_map`.
Derivatives of any order, in forward and reverse mode, follow from linearity. `vmap` folds the mapped axis into
another axis. The implementation for the platform is selected at lowering, and only this one is traced.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AbstractMesh, AxisType, NamedSharding, use_abstract_mesh

Array = jax.Array
_Result = TypeVar("_Result")
# A user context is part of the key of JAX's caches, so functions traced outside of the context are not reused
# inside.
_STOCK = jax.make_user_context(False)


def stock_operations() -> AbstractContextManager[None]:
    """Returns a context manager within which networks use only JAX's own operations, on every platform.

    It is meant for converters, which support only the primitives of `jax.lax`, and for comparisons. Values and
    derivatives are equal up to rounding, with one exception: if two values of a max pooling window are equal, JAX's
    forward mode picks a different one than its reverse mode, while `max_pool` picks the same one in both modes.

    Example:
      >>> with flaxcnn.ops.stock_operations():
      ...     jaxpr = jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(images)
    """
    return _STOCK(True)


def uses_stock() -> bool:
    """Returns whether the call happens within `stock_operations`."""
    return _STOCK.value


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


def bind(new: Primitive, *operands: Array, **params: Any) -> Array:
    """Applies a primitive to arrays of which, within `shard_map`, some may vary over the devices and others not."""
    return new.bind(*equally_varying(*operands), **params)


def equally_varying(*arrays: Array) -> list[Array]:
    """Within `shard_map`, marks arrays as varying over all mesh axes over which any of them varies.

    JAX's own operations do so themselves. As a result, gradients with respect to the equal arrays, such as
    parameters, are summed over the devices.
    """
    axes = frozenset().union(*map(varying_axes, arrays))
    return [jax.lax.pcast(x, tuple(axes - varying_axes(x)), to="varying") for x in arrays]


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the mesh axes over which an array varies in a `jax.shard_map`: none with `check_vma=False`."""
    return jax.typeof(x).mat.varying


def fold_into_rows(operands: Sequence[Array], axes: Sequence[int | None], size: int) -> list[Array]:
    """Returns operands with the mapped axis folded into the first axis; unmapped operands are repeated."""
    folded = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None:
            operand = jnp.broadcast_to(operand[:, None], (operand.shape[0], size, *operand.shape[1:]))
        else:
            operand = jnp.moveaxis(operand, axis, 1)
        folded.append(operand.reshape(operand.shape[0] * size, *operand.shape[2:]))
    return folded


def bind_rows(
    new: Primitive, operands: Sequence[Array], axes: Sequence[int | None], *, shape: tuple[int, ...], **params: Any
) -> tuple[Array, int]:
    """Maps a primitive by merging the mapped axis into the batch; operands without that axis, as a kernel, stay."""
    size = mapped_size(operands, axes)
    rows = [
        x if axis is None else fold_into_rows([x], [axis], size)[0] for x, axis in zip(operands, axes, strict=True)
    ]
    y = new.bind(*rows, shape=(shape[0] * size, *shape[1:]), **params)
    return y.reshape(shape[0], size, *shape[1:]), 1


def map_over_rows(new: Primitive, stock: Callable[..., Array]) -> None:
    """Registers the batching rule of a primitive whose operands and result all have the batch as their first axis.

    `vmap` merges the mapped axis into the batch axis and calls the primitive once. Only if explicit sharding shards
    the mapped axis, it maps `stock` instead.

    Args:
      new: the primitive.
      stock: the same computation by JAX's operations, `stock(*operands, **params)`.
    """

    def rule(operands: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
        if is_sharded(operands, axes):
            return mapped_by_stock(stock, operands, axes, **params)
        size, rows = mapped_size(operands, axes), operands[0].shape[axes[0] == 0]
        if shape := params.get("shape"):
            params["shape"] = (shape[0] * size, *shape[1:])
        result = new.bind(*fold_into_rows(operands, axes, size), **params)
        return result.reshape(rows, size, *result.shape[1:]), 1

    batching.primitive_batchers[new] = rule


def is_sharded(operands: Sequence[Array], axes: Sequence[int | None]) -> bool:
    """Returns whether explicit sharding shards a mapped axis over devices, so that it cannot be folded."""
    placed = ((jax.typeof(x).sharding, axis) for x, axis in zip(operands, axes, strict=True) if axis is not None)
    return any(_explicit(sharding) and sharding.spec[axis] for sharding, axis in placed)


def mapped_by_stock(
    stock: Callable[..., Array], operands: Sequence[Array], axes: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    """Applies `vmap` of JAX's own operation, which determines the sharding of its result."""
    return jax.vmap(functools.partial(stock, **params), tuple(axes))(*operands), 0


def mapped_size(operands: Sequence[Array], axes: Sequence[int | None]) -> int:
    """Returns the length of the axis that `vmap` maps over."""
    return next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)


class Multilinear:
    """An operation that is linear in each of its arguments, together with its transposes, as one primitive.

    Let f(x_1, ..., x_n) be the operation and y a cotangent of its output. The inner product <y, f(x_1, ..., x_n)>
    is linear in y and in every x_i. Its derivative with respect to y is f. Its derivative with respect to x_i is
    the transpose of f in x_i, a function of y and of the other x_j. Derivatives of these functions, of any order,
    are again functions of this kind. The primitive computes all of them: its parameter `result` names the argument
    with respect to which the inner product is differentiated, which is y for f itself.

    The operands of the primitive are the residuals, followed by x_1, ..., x_n, y in this order, without the
    argument that `result` names. Residuals are operands in which f need not be linear; derivatives with respect to
    them are zero.
    """

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        *,
        stock: Callable[..., Array],
        default: Callable[..., Array],
        cpu: Callable[..., Array],
        engine: Callable[..., Array | None] | None = None,
        residuals: int = 0,
    ):
        """Defines the primitive.

        Args:
          name: name of the primitive in jaxprs and profiles.
          arguments: names of x_1, ..., x_n and y, such as ("input", "kernel", "output").
          stock: the operation f by JAX's operations, `stock(*operands, **params)`.
          default: implementation `default(result, shape, *operands, **params)`. `result` names the argument with
            respect to which the inner product is differentiated, and `shape` is the shape of this argument.
          cpu: implementation on CPUs, with the same arguments.
          engine: implementation on CPUs by a library call, with the same arguments; see `primitive`.
          residuals: number of residuals.
        """
        self._arguments, self._residuals, self._stock = arguments, residuals, stock
        self.primitive = primitive(
            name,
            result_type=_result_type,
            default=functools.partial(_computed, default),
            cpu=functools.partial(_computed, cpu),
            engine=functools.partial(_computed, engine) if engine else None,
        )
        count = residuals + len(arguments) - 1
        rules = [None if i < residuals else functools.partial(self._tangent, i) for i in range(count)]
        ad.defjvp(self.primitive, *rules)
        ad.primitive_transposes[self.primitive] = self._transposed
        map_over_rows(self.primitive, self.by_stock)

    def __call__(self, *operands: Array, **params: Any) -> Array:
        """Applies the operation."""
        arrays = equally_varying(*operands)
        if uses_stock():
            return self._stock(*arrays, **params)
        result = type_of(self._stock, *map(jax.typeof, arrays), **params)
        placed = {"shape": result.shape, "sharding": _explicit(result.sharding)}
        return self.primitive.bind(*arrays, result=self._arguments[-1], **placed, **params)

    def by_stock(
        self, *operands: Array, result: str, shape: tuple[int, ...], sharding: NamedSharding | None, **params: Any
    ) -> Array:
        """Computes the result of the primitive by JAX's operations; operands and parameters are the primitive's."""
        *arguments, output = self._arguments
        if result == output:
            return self._stock(*operands, **params)
        residuals, given = operands[: self._residuals], iter(operands[self._residuals :])
        known = {name: next(given) for name in self._arguments if name != result}

        def forward(sought: Array) -> Array:
            known[result] = sought
            return self._stock(*residuals, *(known[name] for name in arguments), **params)

        like = jax.ShapeDtypeStruct(shape, known[output].dtype, sharding=sharding)
        return jax.linear_transpose(forward, like)(known[output])[0]

    def _tangent(self, index: int, tangent: Array, *operands: Array, **params: Any) -> Array:
        arrays = [tangent if i == index else x for i, x in enumerate(operands)]
        return bind(self.primitive, *arrays, **params)

    def _transposed(self, cotangent: Any, *operands: Any, result: str, **params: Any) -> list[Any]:
        index = next(i for i, x in enumerate(operands) if ad.is_undefined_primal(x))
        sought = operands[index].aval
        gradients: list[Any] = [None] * len(operands)
        if type(cotangent) is ad.Zero:
            gradients[index] = ad.Zero(sought.to_ct_aval())
            return gradients
        given = [name for name in self._arguments if name != result]
        arguments = dict(zip(given, operands[self._residuals :], strict=True)) | {result: cotangent}
        asked = given[index - self._residuals]
        others = [arguments[name] for name in self._arguments if name != asked]
        params |= {"shape": sought.shape, "sharding": _explicit(sought.sharding)}
        gradients[index] = bind(self.primitive, *operands[: self._residuals], *others, result=asked, **params)
        return gradients


def _explicit(sharding: NamedSharding) -> NamedSharding | None:
    """Returns the sharding if it is explicit, that is, part of the array's type; otherwise None."""
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _result_type(*operands: Array, shape: tuple[int, ...], sharding: NamedSharding | None, **_: Any) -> Array:
    zeros = jax.lax.full(shape, 0, operands[-1].dtype, sharding=sharding)
    return equally_varying(zeros, *operands)[0]


def _computed(
    compute: Callable[..., _Result],
    *operands: Array,
    result: str,
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
    **params: Any,
) -> Array | _Result:
    if any(0 in operand.shape for operand in operands):
        return jnp.zeros(shape, operands[-1].dtype)
    return compute(result, shape, *operands, **params)
