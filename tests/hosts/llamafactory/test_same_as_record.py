"""Each stage still computes what it did at the recorded commit, bit by bit on a CPU that rounds alike."""

from __future__ import annotations

from typing import Any

import pytest
from recorded import CASES, differences, found_here

HOST = "llamafactory"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One short run of each stage, all in one process."""
    return found_here(HOST)


@pytest.mark.parametrize("case", CASES[HOST])
def test_losses_weights_draws_receipt_and_trained_model_are_those_of_the_record(found, case):
    assert differences(HOST, found, case) == []
