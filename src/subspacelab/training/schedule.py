"""Learning rates as functions of the step."""

import math


def one_cycle(step: int, num_steps: int, *, peak: float, warmup: float = 0.1, final: float = 0.02) -> float:
    """Linear from peak/25 to `peak` over the first `warmup` share of the steps, then a cosine down to final * peak.

    After Smith's one-cycle policy (arXiv 1708.07120); `step` counts from 0.
    """
    rise = max(1.0, warmup * num_steps)
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    through = min(1.0, (step - rise) / max(1.0, num_steps - 1 - rise))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through)))
