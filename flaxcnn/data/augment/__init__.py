"""Augmentation on the device, inside the compiled training step.

geometry   flips, crops and translations
color      brightness, contrast, saturation, hue; noise along the principal components of color
erasing    random rectangles set to zero
policies   RandAugment and TrivialAugment
mixup      mixup and cutmix, the two that work on a batch
rounding   products and quotients that are rounded alike on all devices
draws      random draws that several augmentations use

The augmentations of one image, all but those in `mixup`, are pure functions of a PRNG key and the image, to be
batched with `jax.vmap`. Shapes are static, and there are no host callbacks. Every random draw sets its dtype,
because `jax_enable_x64` changes JAX's default dtypes, and with them the numbers drawn.
"""
