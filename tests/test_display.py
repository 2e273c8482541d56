"""What is shown while something runs."""

from __future__ import annotations

import pytest

from betasigma import display
from betasigma.display import Display, clock


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Beginnings of all lines printed, of which none is left out for being soon after another."""
    monkeypatch.setattr(display, "PLAIN_SECONDS", 0.0)
    lines: list[str] = []
    original = Display.line
    monkeypatch.setattr(
        Display,
        "line",
        lambda self, text: (lines.append(text.split("  ")[0]), original(self, text)),
    )
    return lines


def test_steps_are_counted_and_shares_are_percent(told: list[str]) -> None:
    with Display().work("training", 40, 10) as update:
        update(20, "")
    with Display().share("sampling") as advance:
        for _ in range(8):
            advance(1 / 8)
    assert told[0] == "training 20/40"
    assert told[1:] == [f"sampling {n} %" for n in (12, 25, 37, 50, 62, 75, 87, 100)]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(59.9, "0:00:59"), (172799, "47:59:59"), (172800, "2 days 0:00:00")],
)
def test_durations(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_the_end_of_work_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Display().work("training", 10) as update:
        for done in (9, 10, 10):
            update(done, "")
    assert capsys.readouterr().out.count("training 10/10") == 1


def test_numbers_in_a_narrow_table_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display()
    shown.console.width = 60
    numbers = [f"{n}.234567" for n in range(12)]
    shown.table("of many", ["run", *map(str, range(12))], [["model=ddpm,lr=0.001", *numbers]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [n for n in numbers if not any(f" {n} " in line for line in lines)] == []
    assert sum("model=ddpm,lr=0.001" in line for line in lines) == 4
    told = [["model=ddpm,seed=1,lr=0.004", "dpm_solver steps=10", *numbers[:4]]]
    shown.table("", ["run", "sampler", *("a header that is long " * 3,) * 4], told, ["sampler"])
    narrow = capsys.readouterr().out
    assert [w for w in " ".join(told[0]).split() if f" {w} " not in narrow] == []


def test_names_in_a_narrow_table_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display()
    shown.console.width = 80
    name = "val/fd_efficientnet_lite0_floor"
    shown.table("", ["metric", "first_" * 5, "second_" * 4], [[f"{name} n=20", "33.91", "34.02"]])
    lines = capsys.readouterr().out.splitlines()
    assert any(name in line for line in lines)
    assert max(map(len, lines)) <= 80
    shown.table("", ["run", *"12345", "validation_" * 6], [["a", *"12345", "0.5"]])
    headers = capsys.readouterr().out.splitlines()
    assert max(map(len, headers)) == 80  # short names leave the width to the headers
