"""Text that a terminal or an encoding cannot take as it is."""

from __future__ import annotations

import pytest

from convlens.core.terminal import encodable, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat 猫 é 🐈 a\u00a0b", "cat 猫 é 🐈 a\u00a0b"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\r\tc\x00\x7f\x9b", r"a\nb\r\tc\x00\x7f\x9b"),
        ("\u202egnp.exe\u2066\u200f\u2028", r"\u202egnp.exe\u2066\u200f\u2028"),
        ("caf\udce9", r"caf\xe9"),  # a file name in Latin-1
        ("\ud800", r"\ud800"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "8→16, 3×3 – ‖Δw‖ … 猫"),
        ("ascii", r"8->16, 3x3 - ||delta w|| ... \u732b"),
        ("latin-1", r"8->16, 3×3 - ||delta w|| ... \u732b"),
        ("cp1252", r"8->16, 3×3 – ||delta w|| … \u732b"),
    ],
)
def test_what_an_encoding_has_not_is_written_plainly(encoding: str, shown: str) -> None:
    text = encodable("8→16, 3×3 – ‖Δw‖ … 猫", encoding)
    assert text == shown
    text.encode(encoding)


def test_a_lone_surrogate_can_be_written() -> None:
    assert encodable("caf\udce9", "utf-8") == r"caf\xe9"
