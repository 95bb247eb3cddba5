"""BatchNorm computed as one multiplication and one addition per value."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm`, computed as `x * factor + offset`, as torch does (Ioffe and Szegedy 2015).

    linen computes `(x - mean) * factor + bias`, whose gradient needs `x - mean`. For each norm, a training step
    would write and read one more array as large as the feature map. Here the gradient needs only `x`. The results
    agree up to rounding. Channels must be on the last axis, and there is no `mask` argument.

    `momentum` is the weight of the old running statistic: torch's 0.1 corresponds to 0.9 here. linen's default is
    0.99.
    """

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Normalizes an array (..., C) and returns an array of the same shape.

        Updates the collection `batch_stats` unless `use_running_average` is true.

        Raises:
          ValueError: `axis` is not the last axis.
        """
        if self.axis not in (-1, x.ndim - 1):
            raise ValueError(f"BatchNorm normalizes channels on the last axis, got axis={self.axis}")
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = x.shape[-1:]
        wide = x.astype(jnp.promote_types(self.dtype or x.dtype, jnp.float32))
        stats_dtype = jnp.float32 if self.force_float32_reductions else wide.dtype
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, stats_dtype)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = self._statistics(wide)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, channels, self.param_dtype)
        offset = -mean * factor
        if self.use_bias:
            offset += self.param("bias", self.bias_init, channels, self.param_dtype)
        factor, offset = (each.reshape((1,) * (x.ndim - 1) + channels) for each in (factor, offset))
        return (wide * factor + offset).astype(self.dtype or x.dtype)

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Returns mean (C,) and variance (C,) of a batch (..., C), averaged over devices if `axis_name` is set."""

        def mean_of(*arrays: Array) -> tuple[Array, ...]:
            means = tuple(array.mean(range(x.ndim - 1)) for array in arrays)
            if self.axis_name is None or self.is_initializing():
                return means
            return jax.lax.pmean(means, self.axis_name, axis_index_groups=self.axis_index_groups)

        if not self.use_fast_variance:
            (mean,) = mean_of(x)
            (var,) = mean_of(jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + mean.shape)))
            return mean, var
        mean, mean_of_squares = mean_of(x, x * x)  # the gradient of a square would need 2 x
        return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0)
