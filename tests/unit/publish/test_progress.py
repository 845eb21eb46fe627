import io

import pytest

from engine.publish.progress import format_bytes, line_progress, progress_for, terminal_progress

MIB = 1 << 20


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def test_lines_come_every_ten_seconds():
    clock, lines = Clock(), []
    progress = line_progress(lines.append, clock)
    for second in range(30):
        clock.now_s = 100.0 + second
        progress("sha256:a", second * MIB, 100 * MIB)

    assert lines == [
        "  10.0 MiB of 100.0 MiB, 1.0 MiB/s, 2 min left",
        "  20.0 MiB of 100.0 MiB, 1.0 MiB/s, 1 min left",
    ]


def test_a_quick_transfer_says_nothing():
    clock, lines = Clock(), []
    progress = line_progress(lines.append, clock)
    progress("sha256:a", 0, MIB)
    clock.now_s += 9
    progress("sha256:a", MIB, MIB)
    clock.now_s += 9
    progress("sha256:b", 0, MIB)

    assert lines == []


def test_the_rate_of_a_resumed_transfer_counts_what_came_now():
    clock, lines = Clock(), []
    progress = line_progress(lines.append, clock)
    progress("sha256:a", 90 * MIB, 100 * MIB)
    clock.now_s += 10
    progress("sha256:a", 95 * MIB, 100 * MIB)

    assert lines == ["  95.0 MiB of 100.0 MiB, 512.0 KiB/s, 10 s left"]


def test_a_terminal_gets_a_bar_that_goes_away():
    clock, stream = Clock(), io.StringIO()
    progress = terminal_progress(stream, clock)
    progress("sha256:a", 0, 4 * MIB)
    clock.now_s += 1
    progress("sha256:a", 2 * MIB, 4 * MIB)
    shown = stream.getvalue()
    progress("sha256:a", 4 * MIB, 4 * MIB)

    assert "████████████░░░░░░░░░░░░ 2.0 MiB of 4.0 MiB, 2.0 MiB/s, 1 s left" in shown
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_what_is_no_terminal_gets_lines():
    stream = io.StringIO()
    progress_for(stream, [].append)("sha256:a", 0, 1)

    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text
