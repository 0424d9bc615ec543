"""What a person reads while a run trains, from its events."""

from __future__ import annotations

import io
import json
import re

import pytest

from rayssl.progress import Filling, Line, Phase, Preparing, Stepped, Trained, decode, encode, open_screen
from rayssl.progress.events import Event
from rayssl.progress.pace import Pace
from rayssl.progress.screens import Plain, Terminal, duration

EVENTS: list[Event] = [
    Line("resumed from runs/a"),
    Phase("started Ray", 4.25),
    Filling(2, 64, 640),
    Stepped(1, 3, 5, 30, 4.5, 320.0, 0.02),
    Stepped(1, 3, 6, 30),
    Trained(1, 3, 10, 30, 7.5, {"loss": 4.0, "speaker_accuracy": 0.25, "utterances_per_s": 310.4, "other": 1.0}),
]


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("event", [*EVENTS, Preparing("preparing", "train", 3, None, "utterances", 0.5, 1)])
def test_events_survive_a_line(event: Event) -> None:
    assert decode(encode(event)) == event
    assert "\n" not in encode(event)


@pytest.mark.parametrize(
    "line", ["", "epoch 3", "\x1erayssl ", '\x1erayssl {"event": "line"', '\x1erayssl {"event": "x"}']
)
def test_other_lines_are_no_events(line: str) -> None:
    assert decode(line) is None


def test_plain_has_the_time_no_colour_and_few_lines_about_steps() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Plain(out, every_s=30, clock=clock)
    for event in EVENTS:
        screen.show(event)
    for step in range(7, 300):
        clock.now += 0.5
        screen.show(Stepped(1, 3, step, 300, 2.0 if step % 50 == 0 else None))
    lines = out.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines) and "\x1b" not in out.getvalue()
    assert [line[9:] for line in lines[:4]] == [
        "resumed from runs/a",
        "started Ray in 4.2 s",
        "first step 0 s after the start",
        "epoch 1/3  loss 4.0000  speaker accuracy 25.0%  310 utterances/s  7.5 s",
    ]
    assert len(lines) == 4 + 4  # 146 s of steps
    assert re.fullmatch(r"epoch 1/3  step \d+/300  loss 2.0000  \dm\d\ds left", lines[-2][9:]), lines[-2]


def test_a_terminal_has_a_bar_below_the_lines() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Terminal(out, clock, force_terminal=True, width=100, color_system=None)
    for event in EVENTS:
        clock.now += 10
        screen.show(event)
    screen.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "resumed from runs/a\n" in plain and "epoch 1/3  loss 4.0000" in plain
    assert "step 6/30  loss 4.5000  320 utterances/s  2% waiting for data" in plain  # the last rates that were told


def test_a_preparation_has_files_hours_pace_and_what_is_left() -> None:
    """10 utterances a second, of 10 s each: after 40 s, 60 s are left. Listing has no end that is known."""
    out, clock = io.StringIO(), Clock()
    bar = Terminal(out, clock, force_terminal=True, width=140, color_system=None)
    plain_out = io.StringIO()
    plain = Plain(plain_out, every_s=30, clock=clock)
    for screen in (bar, plain):
        clock.now = 0.0
        for _ in range(40):
            clock.now += 1
            screen.show(Preparing("listing", "train", int(25 * clock.now), None, "utterances"))
        for second in range(41):
            clock.now = 40.0 + second
            done = 10 * second
            screen.show(Preparing("preparing", "train", done, 1000, "utterances", done / 360, second // 20))
        screen.close()
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "preparing train" in seen and "400/1,000 utterances  1.11 h  10/s  2 rejected  1m00s left" in seen
    lines = [line[9:] for line in plain_out.getvalue().splitlines()]
    assert lines[0].startswith("listing train  750 utterances  26/s")
    assert lines[1] == "preparing train  200/1,000 utterances  0.56 h  10/s  1 rejected  1m20s left"
    assert len(lines) == 2  # 80 s


def test_slow_work_is_told_by_the_minute() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Plain(out, every_s=30, clock=clock)
    for minute in range(3):
        clock.now = 60.0 * minute
        screen.show(Preparing("preparing", "nights", minute, 40, "nights"))
    assert "2/40 nights  1/min  38m00s left" in out.getvalue()


def test_json_has_every_event_and_quiet_none() -> None:
    out = io.StringIO()
    for mode in ("json", "quiet"):
        screen = open_screen(mode, out)  # type: ignore[arg-type]
        for event in EVENTS:
            screen.show(event)
        screen.close()
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [each["event"] for each in found] == [event.name for event in EVENTS]
    assert all(each["time"] > 1e9 for each in found) and found[3]["loss"] == 4.5


def test_pace_forgets_the_first_steps_and_counts_what_epochs_cost_besides() -> None:
    pace = Pace()
    pace.saw(0.0, 1)  # what came before the first step says nothing about the others
    assert pace.left(5.0, 100) is None
    for step in range(2, 12):
        pace.saw(float(step - 1), step)
    assert pace.left(10.0, 100) == pytest.approx(100.0)
    pace.away(20.0)
    pace.saw(31.0, 12)
    pace.epoch_ended()
    assert pace.left(31.0, 100, epochs=2) == pytest.approx(140.0)
    for step in range(13, 1000):  # ten times as fast from here
        pace.saw(31.0 + 0.1 * (step - 12), step)
    assert pace.left(130.0, 100) == pytest.approx(10.0, rel=0.4)


def test_durations() -> None:
    assert [duration(each) for each in (5.9, 65, 3661)] == ["0m05s", "1m05s", "1h01m"]
