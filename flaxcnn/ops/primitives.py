"""JAX primitives that each platform computes in the way that is quick there, with JAX's own rules for all else.

JAX's transformations see its rules only. The type of the result is that of the stock operation, so it is placed
like that one under explicit sharding and `shard_map`. Derivatives follow from linearity, to any order and in both
modes. `vmap` folds the mapped axis into one that is there. What a platform computes is chosen when a program is
lowered, and only that is traced.
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
# Part of the key of JAX's caches, so that nothing traced without it serves within it.
_STOCK = jax.make_user_context(False)


def stock_operations() -> AbstractContextManager[None]:
    """Returns a context in which the networks consist of JAX's own operations alone, on every platform.

    Converters, which know the primitives of `jax.lax` and no others, trace within it; it also serves to compare.
    Values and derivatives are the same to rounding, but where two values of a max pooling window are equal: JAX's
    forward mode then picks another one than its reverse mode, and ours the same in both.

    Example:
      >>> with flaxcnn.ops.stock_operations():
      ...     jaxpr = jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(images)
    """
    return _STOCK(True)


def uses_stock() -> bool:
    """Returns whether `stock_operations` holds."""
    return _STOCK.value


def primitive(
    name: str,
    *,
    result_type: Callable[..., Array],
    default: Callable[..., Array],
    cpu: Callable[..., Array],
    engine: Callable[..., Array | None] | None = None,
) -> Primitive:
    """Returns a primitive with one result, called by `bind`; derivatives and `vmap` are still to be defined.

    Args:
      name: shown in jaxprs and profiles.
      result_type: what has the shape, dtype and placement of the result, from JAX's operations; never computed.
      default: what computes it, `default(*operands, **params)`.
      cpu: what computes it on CPUs.
      engine: what computes it there instead by a call that XLA cannot see into; None of it where there is none.
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

    by_operations, by_engine = (mlir.lower_fun(way, multiple_results=False) for way in (compute, preferred))

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        lower = by_engine if engine and _is_for_one_device(context.module_context) else by_operations
        # Types are settled by now, and the partitioner sees the operations themselves: traced for plain arrays,
        # they may cut and join axes as they like.
        with use_abstract_mesh(AbstractMesh((), ())):
            types = cast(Sequence[ShapedArray], context.avals_in)
            plain = [ShapedArray(each.shape, each.dtype) for each in types]
            return lower(context.replace(avals_in=plain), *operands, **params)

    return rule


def _is_for_one_device(module: mlir.ModuleContext) -> bool:
    """Returns whether each device of this process runs a program as it is: neither exported nor partitioned."""
    axes: Any = module.axis_context
    if module.lowering_parameters.for_export:
        return False
    if hasattr(axes, "manual_axes"):  # within `shard_map`
        return all(size == 1 or name in axes.manual_axes for name, size in axes.mesh.shape.items())
    return getattr(axes, "num_devices", 1) == 1


def type_of(function: Callable[..., Array], *types: ShapedArray, **params: Any) -> ShapedArray:
    """Returns the type of a function's result: shape, dtype, and where it lies."""
    return jax.make_jaxpr(functools.partial(function, **params))(*types).out_avals[0]


def bind(new: Primitive, *operands: Array, **params: Any) -> Array:
    """Applies a primitive to arrays of which some may vary over the devices of a `shard_map`, and others not."""
    return new.bind(*equally_varying(*operands), **params)


def equally_varying(*arrays: Array) -> list[Array]:
    """Marks arrays that are alike on all devices of a `shard_map` as varying if another one varies.

    JAX's own operations do so themselves: then gradients with respect to parameters are summed over the devices.
    """
    axes = frozenset().union(*map(varying_axes, arrays))
    return [jax.lax.pcast(x, tuple(axes - varying_axes(x)), to="varying") for x in arrays]


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the axes over which `jax.shard_map` takes an array to vary: none with `check_vma=False`."""
    return jax.typeof(x).mat.varying


def fold_into_rows(operands: Sequence[Array], axes: Sequence[int | None], size: int) -> list[Array]:
    """Returns operands whose mapped axis has become part of the first one; those without it are repeated."""
    folded = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None:
            operand = jnp.broadcast_to(operand[:, None], (operand.shape[0], size, *operand.shape[1:]))
        else:
            operand = jnp.moveaxis(operand, axis, 1)
        folded.append(operand.reshape(operand.shape[0] * size, *operand.shape[2:]))
    return folded


def map_over_rows(new: Primitive, stock: Callable[..., Array]) -> None:
    """Defines `vmap` of a primitive whose operands and result have the images as their first axis.

    Args:
      new: the primitive.
      stock: the same from JAX's operations, `stock(*operands, **params)`.
    """

    def rule(operands: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
        if is_split(operands, axes):
            return mapped_by_stock(stock, operands, axes, **params)
        size, rows = mapped_size(operands, axes), operands[0].shape[axes[0] == 0]
        if shape := params.get("shape"):
            params["shape"] = (shape[0] * size, *shape[1:])
        result = new.bind(*fold_into_rows(operands, axes, size), **params)
        return result.reshape(rows, size, *result.shape[1:]), 1

    batching.primitive_batchers[new] = rule


def is_split(operands: Sequence[Array], axes: Sequence[int | None]) -> bool:
    """Returns whether a mapped axis is split over devices by explicit sharding; then it cannot be folded."""
    placed = ((jax.typeof(x).sharding, axis) for x, axis in zip(operands, axes, strict=True) if axis is not None)
    return any(_explicit(sharding) and sharding.spec[axis] for sharding, axis in placed)


def mapped_by_stock(
    stock: Callable[..., Array], operands: Sequence[Array], axes: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    """Returns `vmap` of the same operation from JAX's operations, with its rules of placement."""
    return jax.vmap(functools.partial(stock, **params), tuple(axes))(*operands), 0


def mapped_size(operands: Sequence[Array], axes: Sequence[int | None]) -> int:
    """Returns the length of the axis that `vmap` maps over."""
    return next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)


class Multilinear:
    """An operation that is linear in each of its arguments, and its transposes, as one primitive.

    With the output as a further argument it is a form: the sum of the output's values, each times its own weight,
    a number that is linear in every argument. The derivative of that number with respect to one argument is a
    function of the others: the operation itself, or a transpose. All derivatives of all orders are of these.

    Its operands are the residuals, in which it is not linear and whose derivative is zero, and then the arguments
    in their order, but for the one that is asked for.
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
          name: shown in jaxprs and profiles.
          arguments: their names, the output last.
          stock: the operation from JAX's operations, `stock(*operands, **params)`.
          default: what computes it, `default(result, shape, *operands, **params)`; `result` names the argument with
            respect to which the form is derived, and `shape` is the shape of this argument.
          cpu: the same on CPUs.
          engine: the same there by a call that XLA cannot see into, or None where there is none.
          residuals: number of operands before the arguments.
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
        """Returns what the primitive does, from JAX's operations; parameters as in its `bind`."""
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
    """Returns the placement that is part of a type, if it is."""
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
