import pytest

from subspacelab.training.fit import one_cycle


def test_rises_to_the_peak_and_falls_to_the_final_share() -> None:
    rates = [one_cycle(step, 100, peak=2.0, warmup=0.1, final=0.02) for step in range(100)]
    assert max(rates) == rates[10] == 2.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.04)


def test_a_single_step_has_a_rate() -> None:
    assert one_cycle(0, 1, peak=1.0) > 0
