"""Options and settings of the whole test run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores; read when torch is imported

ASKED = {"full": "weights of full size: about 7 GB of disk and 24 GB of memory", "gpu": "a CUDA device"}

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, need in ASKED.items():
        parser.addoption(f"--{name}", action="store_true", help=f"also run the tests that need {need}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name, need in ASKED.items():
            if name in item.keywords and not config.getoption(f"--{name}"):
                item.add_marker(pytest.mark.skip(reason=f"needs {need}: run pytest with --{name}"))
