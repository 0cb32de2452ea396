"""The rows of the audit's cost, on a small model in real processes."""

import pytest

from benchmarks import audit_cost
from benchmarks.row import Budget


@pytest.mark.slow
def test_an_audit_and_a_step_are_measured_in_processes_of_their_own():
    budget = Budget(rounds=1, quick=True)
    steps, memory = (row.measure(budget) for row in audit_cost.ROWS)
    assert steps.value > 0 and memory.value > 0
    assert steps.gate == memory.gate == "each audit saw 7 random operations"


def test_an_audit_that_saw_nothing_is_no_measurement():
    with pytest.raises(AssertionError, match="saw nothing"):
        audit_cost.gate([{"audit": {"seen": 0}}])
    with pytest.raises(ValueError, match="too many values"):
        audit_cost.gate([{"audit": {"seen": 7}}, {"audit": {"seen": 6}}])
