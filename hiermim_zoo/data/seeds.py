"""Random numbers that follow from a seed alone, in every process, and leave those of the model as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the random numbers of libraries that transforms use follow from the seed; outside all is as before."""
    with undisturbed():
        seed_all(seed)
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers may be seeded and drawn inside; outside all is as before."""
    state = random_states()
    try:
        yield
    finally:
        set_random_states(state)


def seed_all(seed: int) -> None:
    """From here on, the random numbers of libraries that transforms use follow from the seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would look at every device


def random_states() -> tuple[Any, Any, Tensor]:
    """Where the random numbers that transforms use stand."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_states(state: tuple[Any, Any, Tensor]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def seed_of(*numbers: int) -> int:
    """One 32-bit seed for a combination of whole numbers, the same in every process."""
    return hash(numbers) & 0xFFFFFFFF  # Python salts the hashes of strings, not of numbers
