"""Operations that are linear in each of their arguments, with all their derivatives, as one primitive."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jax.sharding import NamedSharding

from flaxcnn.ops.primitives import explicit_sharding, primitive, type_of
from flaxcnn.ops.stock import uses_stock
from flaxcnn.ops.varying_axes import bind, equally_varying
from flaxcnn.ops.vmap_rules import map_over_rows

Array = jax.Array
_Result = TypeVar("_Result")


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
        placed = {"shape": result.shape, "sharding": explicit_sharding(result.sharding)}
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
        params |= {"shape": sought.shape, "sharding": explicit_sharding(sought.sharding)}
        gradients[index] = bind(self.primitive, *operands[: self._residuals], *others, result=asked, **params)
        return gradients


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


def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], gradient: Array) -> Array:
    """Applies the transpose of a linear function to a gradient.

    Args:
      linear: linear function of one array.
      shape: shape of that array.
      gradient: gradient with respect to the result of the function.

    Returns:
      The gradient with respect to the argument of the function: an array of shape `shape`.
    """
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]
