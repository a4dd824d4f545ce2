"""R_02 = R_01 R_12: true by construction, false by construction, true for any matrices where Q1 is square, and blind
to turns within the spans.
"""

import numpy as np
import pytest
import torch
from tests.unit.linalg.matrices import seeded

from subspacelab.linalg.subspaces import composition_error, random_orthonormal, rotation


def bases(m: int, r: int, seed: int = 0) -> list[torch.Tensor]:
    g = seeded(seed)
    return [random_orthonormal(m, r, g) for _ in range(3)]


def test_bases_of_one_space_compose():
    g = seeded(1)
    q = random_orthonormal(90, 20, g)
    q0, q1, q2 = (q @ random_orthonormal(20, 20, g) for _ in range(3))
    error = composition_error(q0, q1, q2)
    assert error.mse < 1e-28
    assert error.relative < 1e-13


def test_a_square_middle_basis_composes_whatever_the_others_are():
    q0, q1, q2 = bases(30, 30)
    assert composition_error(q0[:, :10], q1, q2[:, :10]).relative < 1e-13


def test_a_chain_that_does_not_compose_gives_the_numpy_value():
    q0, q1, q2 = bases(90, 20)
    a, b, c = (q.numpy() for q in (q0, q1, q2))
    direct = a.T @ c
    difference = (a.T @ b) @ (b.T @ c) - direct
    error = composition_error(q0, q1, q2)
    assert error.mse == pytest.approx(np.mean(difference**2), rel=1e-12)
    assert error.relative == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(direct), rel=1e-12)
    np.testing.assert_allclose(difference, -a.T @ (np.eye(90) - b @ b.T) @ c, atol=1e-14)


def test_turns_within_the_spans_leave_no_trace():
    g = seeded(2)
    q0, q1, q2 = bases(90, 20)
    error = composition_error(q0, q1, q2)
    scrambled = composition_error(*(q @ random_orthonormal(20, 20, g) for q in (q0, q1, q2)))
    assert scrambled.mse == pytest.approx(error.mse, rel=1e-12)
    assert scrambled.relative == pytest.approx(error.relative, rel=1e-12)


def test_the_end_points_own_basis_in_the_middle_composes():
    q0, _, q2 = bases(60, 15)
    assert composition_error(q0, q2, q2).relative < 1e-13
    same = composition_error(q0, q0, q0)
    assert (same.mse < 1e-30, same.relative < 1e-14) == (True, True)


def test_float32_bases_are_multiplied_in_float64():
    q0, q1, _ = (q.float() for q in bases(60, 15))
    torch.testing.assert_close(rotation(q0, q1), q0.double().T @ q1.double(), rtol=0, atol=1e-14)


def test_tall_bases_are_streamed(monkeypatch):
    q0, q1, q2 = bases(203, 12)
    whole = composition_error(q0, q1, q2)
    monkeypatch.setattr("subspacelab.linalg.moments.CHUNK_ENTRIES", 12 * 10)
    assert composition_error(q0, q1, q2).mse == pytest.approx(whole.mse, rel=1e-12)
