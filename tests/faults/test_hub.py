"""Downloads that are cut, changed or damaged, and connections nobody asked for: the experiments of the fault table, fewer of each."""

from __future__ import annotations

from scripts.faults import hub


def test_c8_no_bad_file_is_accepted_and_little_is_fetched_twice() -> None:
    figure = hub.c8(60)
    assert figure.good, str(figure)


def test_g4_no_connection_is_opened() -> None:
    figure = hub.g4(3)
    assert figure.good, str(figure)
