"""Results that a thread computes while the caller works."""

from __future__ import annotations

import threading

import pytest
from finepref.synth.ahead import ahead


def test_results_come_in_order_from_one_other_thread():
    threads = set()

    def double(number):
        threads.add(threading.get_ident())
        return 2 * number

    assert [*ahead(double, range(20))] == [*range(0, 40, 2)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_nothing_gives_nothing():
    assert [*ahead(pytest.fail, [])] == []


def test_no_more_results_wait_than_there_is_room():
    """The first is given when two more are asked for, and no third one is taken before the caller wants the second."""
    taken = []
    things = (taken.append(number) or number for number in range(10))
    run = ahead(lambda number: number, things, room=2)
    assert next(run) == 0
    assert taken == [0, 1, 2]
    assert next(run) == 1
    assert taken == [0, 1, 2, 3]
    run.close()


def test_the_next_result_is_computed_while_the_caller_has_this_one():
    """Else `second` would never be set."""
    second = threading.Event()
    run = ahead(lambda number: second.set() if number == 1 else None, range(3))
    next(run)
    assert second.wait(timeout=60)
    run.close()


@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_the_function_raises_is_raised_for_the_caller_after_the_results_before_it(kind, count):
    """Also if it is the last result."""

    def fail_at_two(number):
        if number == 2:
            raise kind("two")
        return number

    run = ahead(fail_at_two, range(count))
    assert [next(run), next(run)] == [0, 1]
    with pytest.raises(kind, match="two"):
        next(run)


def test_a_caller_that_is_interrupted_leaves_no_thread_and_no_call():
    before, begun = threading.active_count(), []

    def work():
        for _ in ahead(begun.append, range(1000)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert threading.active_count() == before
    assert len(begun) < 5
