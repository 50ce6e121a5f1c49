# SPDX-License-Identifier: Apache-2.0
"""Text from outside in sentences: one line of bounded length without control characters."""

from __future__ import annotations

from depth_node.sentences import nearest, one_line, quoted


def test_nearest() -> None:
    known = ["fit.method", "fit.min_points", "model"]
    assert nearest("fit.metod", known) == "fit.method"
    assert nearest("Model", known) == "model"
    assert nearest("min_point", known) == "fit.min_points"
    assert nearest("qqq", known) == ""


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert one_line("a\n b\tc\r\nd") == "a b c d"
    assert one_line("\x1b[31mred\x07\u202e") == r"\x1b[31mred\x07\u202e"
    assert one_line("\udcff") == r"\udcff"
    assert one_line("[/red]") == "[/red]", "markup is the console's business"
    assert one_line(OSError()) == "OSError"
    assert one_line("x" * 1000, 10) == "x" * 10 + "…"
    assert len(one_line(" " * 10**7 + "x")) < 300
    assert one_line(10**5000) == "<int>"


def test_values_are_quoted_short_and_in_one_line() -> None:
    class Strange:
        def __repr__(self) -> str:
            raise OSError

    assert quoted("ssf") == "'ssf'" and quoted(2.0) == "2.0" and quoted(None) == "None"
    assert quoted(10**5000).startswith("<an integer of 16610 bits")
    nested: list[object] = []
    for _ in range(50):
        nested = [nested] * 50
    for value in ("x" * 10**6, nested, {n: "\n" for n in range(999)}, b"\0" * 9999, Strange()):
        text = quoted(value)
        assert len(text) <= 201 and text.isprintable()
