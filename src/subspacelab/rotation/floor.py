"""`floor_*`: the effect of half an ulp of bf16 noise, the rounding of a bf16 store, on each measure.

It is the size of one rounding and no limit of what can be seen: the difference of two stored weights is exact, and
updates of small learning rates lie below it. Whether an update is more than a random one, `null_model` says.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows

ALREADY_BF16 = 1e-5  # rounding moves a float32 weight by 1.7e-3 of its norm, one of bf16 entries by rounding noise


def bf16_neighbour(w: Float[Tensor, "m n"], generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A float32 matrix that bf16 storage cannot tell from `w`, half an ulp of noise away.

    It is bf16(w), unless the entries of `w` are bf16 already, so that rounding does nothing. Then it is a seeded
    draw of the weights that would have been stored as `w`: w + u ulp(w) / 2 with u uniform in (-1, 1).
    """
    moved = size = 0.0
    for chunk in w.split(chunk_rows(w)):
        exact = chunk.double()
        moved += (chunk.bfloat16().double() - exact).square().sum().item()
        size += exact.square().sum().item()
    if moved > ALREADY_BF16**2 * size:
        return w.bfloat16().float()
    return draw_unrounded(w.bfloat16(), generator)


def draw_unrounded(w: Float[Tensor, "m n"], generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A float32 matrix that rounds to the bf16 matrix `w`, each entry uniform in what does; zeros stay zero."""
    drawn = torch.empty(w.shape, dtype=torch.float32, device=w.device)
    rows = chunk_rows(w)
    for out, chunk in zip(drawn.split(rows), w.split(rows), strict=True):
        x = chunk.float()
        u = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device) * 2 - 1
        mantissa, exponent = torch.frexp(x)
        # bf16 has 8 significant bits: ulp = 2^(exponent - 8), and half of that below a power of two.
        half_ulp = torch.ldexp(torch.full_like(x, 0.5), exponent - 8)
        half_ulp = torch.where((mantissa.abs() == 0.5) & (u < 0), half_ulp / 2, half_ulp)
        # 1 - 2^-13 keeps the float32 sum from landing on the midpoint, which would round away.
        out.copy_(x + x.sign() * u * half_ulp * (1 - 2**-13))
    return drawn
