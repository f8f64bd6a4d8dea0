"""Weights that ship with the package, for tests that go through them."""

from __future__ import annotations

CLASSIFIERS = (
    "hivit_atto.mae_cifar10_ft_cifar10",
    "hpvit_atto.mae_cifar10_ft_cifar10",
    "green_swin_atto.mae_cifar10_ft_cifar10",
    "hiera_atto.mae_cifar10_ft_cifar10",
    "hiera_atto_video.mae_moving_ft_moving",
)
