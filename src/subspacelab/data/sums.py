"""Sums of two numbers with their worked solutions: a new task for a model that was never shown it."""

import numpy as np

from subspacelab.data.instructions import Instruction

LARGEST = 99


def sums(*, seed: int) -> list[Instruction]:
    """Every sum of two numbers from 10 to 89 that stays below 100, in an order drawn from `seed`."""
    pairs = [(a, b) for a in range(10, LARGEST) for b in range(10, LARGEST + 1 - a)]
    order = np.random.default_rng([seed, 2]).permutation(len(pairs))
    return [Instruction(question(*pairs[i]), solution(*pairs[i])) for i in order]


def question(a: int, b: int) -> str:
    """How a sum is asked."""
    return f"What is {a} + {b}?"


def solution(a: int, b: int) -> str:
    """The sum of the units in two digits, that of the tens and what is carried, the sum: 38 + 45 is `13 8 83`."""
    units = a % 10 + b % 10
    tens = a // 10 + b // 10 + units // 10
    return f"{units:02d} {tens} {a + b}"
