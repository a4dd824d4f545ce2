"""Principal angles between two subspaces, accurate from 1e-16 rad to pi/2."""

import torch
from jaxtyping import Float
from torch import Tensor


def principal_angles(qa: Float[Tensor, "m k"], qb: Float[Tensor, "m k"]) -> Float[Tensor, " k"]:
    """Principal angles in radians, ascending, float64, between the column spans of `qa` and `qb`.

    cos(theta) = singular values of Qa^T Qb; sin(theta) = those of Qb - Qa Qa^T Qb; theta = atan2(sin, cos): the
    sine keeps small angles, which the cosine alone loses below 1e-8, and the cosine those near pi/2.
    The columns need not be orthonormal: both bases are orthonormalised by QR in float64 (Bjorck & Golub 1973;
    Knyazev & Argentati 2002). Columns must be independent.
    """
    qa = torch.linalg.qr(qa.double()).Q
    qb = torch.linalg.qr(qb.double()).Q
    overlap = qa.T @ qb
    cosines = torch.linalg.svdvals(overlap)
    sines = torch.linalg.svdvals(qb - qa @ overlap).flip(0)
    return torch.atan2(sines, cosines)
