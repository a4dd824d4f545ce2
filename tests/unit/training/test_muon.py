import torch

from subspacelab.training.muon import MuonAdamW, orthogonalise


def test_singular_values_come_near_one() -> None:
    for shape in ((6, 6), (3, 9), (9, 3)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix))
        # The quintic is tuned for speed: it leaves singular values between about 0.7 and 1.2.
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_singular_vectors_are_kept() -> None:
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix) @ vh.T
    # Odd polynomials of X = U S V^T act on S alone; float32 rounding over five steps stays below 1e-4.
    assert (core - core.diagonal().diag()).abs().max() < 1e-4


def test_the_other_parameters_follow_adam() -> None:
    generator = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(7, generator=generator), torch.randn(5, 7, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    mine = MuonAdamW([{"params": [ours], "muon": False}], lr=1e-2)
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    # Same formula in another order of operations: float32 rounding.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
