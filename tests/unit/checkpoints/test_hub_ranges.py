"""Byte ranges from a server that is slow, breaks off, or lies."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.checkpoints.range_hub import RangeHub, serving
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import hub as ranges
from subspacelab.checkpoints.hub import HEAD_BYTES, RemoteFile

NAME = "model.safetensors"
CONTENT = bytes(i * 7 % 256 for i in range(200_000))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeHub]:
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ranges, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(ranges, "WAITS", (0.01, 0.01))
    with serving(tmp_path) as server:
        yield server


def remote(hub: RangeHub, name: str = NAME) -> RemoteFile:
    return RemoteFile(hub.weight_url(name), f"lab/tiny: {name}")


@pytest.mark.parametrize(("start", "stop"), [(0, 80_000), (8, 9), (1000, 150_000), (199_999, 200_000), (5, 5)])
def test_a_range_is_its_bytes_and_no_others_are_sent(hub: RangeHub, start: int, stop: int) -> None:
    file = remote(hub)
    assert file.read(start, stop) == CONTENT[start:stop]
    assert hub.sent[NAME] == stop - start
    assert file.size == (len(CONTENT) if stop > start else None)


def test_a_short_first_read_takes_the_head_and_later_ones_ask_for_the_rest_alone(hub: RangeHub) -> None:
    file = remote(hub)
    assert file.read(0, 8) == CONTENT[:8]
    assert file.read(8, 5_000) == CONTENT[8:5_000]
    assert (file.size, hub.sent[NAME], len(hub.requests)) == (len(CONTENT), HEAD_BYTES, 1)
    assert file.read(8, HEAD_BYTES + 100) == CONTENT[8 : HEAD_BYTES + 100]
    assert (hub.sent[NAME], len(hub.requests)) == (HEAD_BYTES + 100, 2)


@pytest.mark.parametrize("faults", [[], ["drop"], ["500", "drop"]])
@pytest.mark.parametrize("length", [8, 20, 30_000])
def test_the_head_of_a_file_that_is_shorter(hub: RangeHub, length: int, faults: list[str]) -> None:
    (hub.root / NAME).write_bytes(CONTENT[:length])
    hub.faults += faults
    file = remote(hub)
    assert file.read(0, 8) == CONTENT[:8]
    assert file.read(8, length) == CONTENT[8:length]
    assert file.size == length
    assert "truncated on the server" in refusal(file.read, 0, length + 1)


def test_the_address_behind_the_redirect_is_kept_until_it_is_refused(hub: RangeHub) -> None:
    file = remote(hub)
    for start in (10, 20, 30):
        assert file.read(start, start + 5) == CONTENT[start : start + 5]
    assert hub.redirects == 1
    hub.faults.append("403")  # a signed address that has ended
    assert file.read(40, 150_000) == CONTENT[40:150_000]
    assert hub.redirects == 2
    hub.faults += ["403", "403"]  # no longer allowed at all
    assert "refuses it" in refusal(file.read, 0, 9)


def test_an_address_that_is_of_one_range_only_is_not_kept(hub: RangeHub) -> None:
    file = remote(hub)
    assert file.read(10, 15) == CONTENT[10:15]
    hub.faults.append("403")
    for i, start in enumerate((20, 30, 40)):
        assert file.read(start, start + 5) == CONTENT[start : start + 5]
        assert hub.redirects == 2 + i
    assert len(hub.requests) == 5  # one was refused, and none after it


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "stall"])
def test_a_failure_is_tried_again(hub: RangeHub, fault: str) -> None:
    hub.faults += [fault, fault]
    assert remote(hub).read(10, 150_000) == CONTENT[10:150_000]
    assert len(hub.requests) == 3


def test_after_a_break_only_the_rest_is_asked_for(hub: RangeHub) -> None:
    hub.faults += ["drop", "drop"]
    assert remote(hub).read(0, 160_000) == CONTENT[:160_000]
    asked = [re.fullmatch(r"bytes=(\d+)-159999", span or "") for _, span in hub.requests]
    starts = [int(match[1]) for match in asked if match]
    # How much of what was sent before a break arrives is the network's affair; what has arrived is not asked for again.
    assert len(starts) == len(hub.requests) >= 3
    assert starts == sorted(set(starts))
    assert starts[0] == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "the server answered 500"),
        ("drop", "RemoteProtocolError"),
        ("stall", "ReadTimeout"),
        ("trickle", "slower than 10 kB/s"),
    ],
)
def test_what_goes_on_failing_ends_in_one_line_that_names_the_file(hub: RangeHub, fault: str, reason: str) -> None:
    hub.faults += [fault] * 9
    began = time.monotonic()
    message = refusal(remote(hub).read, 10, 2_010)
    assert time.monotonic() - began < 5
    assert message.startswith("lab/tiny: model.safetensors: bytes 10-2009 could not be read in 3 attempts")
    assert reason in message
    assert "hf download" in message
    assert len(hub.requests) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("short", "truncated on the server"),
        ("whole", "the server sends whole files only"),
        ("more", "the server sends more than the range asked for"),
        ("401", "hf auth login"),
        ("403", "refuses it"),
        ("418", "the server answered 418"),
    ],
)
def test_an_answer_that_is_no_use_is_refused_at_once(hub: RangeHub, fault: str, reason: str) -> None:
    hub.faults.append(fault)
    message = refusal(remote(hub).read, 0, 100_000)
    assert reason in message
    assert len(hub.requests) == 1


def test_a_range_beyond_the_end_and_a_file_that_is_not_there(hub: RangeHub) -> None:
    assert "truncated on the server" in refusal(remote(hub).read, 200_000, 200_010)
    assert "truncated on the server" in refusal(remote(hub).read, 199_990, 200_010)
    assert "no such file" in refusal(remote(hub, "other.safetensors").read, 0, 8)


def test_no_server_at_all_is_one_line(hub: RangeHub) -> None:
    file = RemoteFile("http://127.0.0.1:9/x", "lab/tiny: x")  # the port that discards
    assert "ConnectError" in refusal(file.read, 0, 8)
