import pytest


def refusal(call, *args):
    """The message of the ValueError that `call` raises, which must be one line."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)
