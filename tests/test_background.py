"""Work behind the caller's back: in order, all of it, and none after an error."""

import threading

import pytest

from datadiet.runs.background import Background


def test_calls_are_done_in_order_and_waited_for():
    done, gate = [], threading.Event()
    with Background(most=3) as work:
        work.submit(gate.wait)
        work.submit(done.append, 1)
        work.submit(done.append, 2)
        assert done == [], "the caller goes on meanwhile"
        gate.set()
        work.submit(done.append, 3)
    assert done == [1, 2, 3]


def test_submit_waits_where_too_many_are_not_done():
    gate, begun = threading.Event(), threading.Event()
    with Background(most=1) as work:
        work.submit(gate.wait)
        late = threading.Thread(target=lambda: (work.submit(lambda: None), begun.set()))
        late.start()
        assert not begun.wait(0.05)
        gate.set()
        late.join()
    assert begun.is_set()


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("hear", ["submit", "wait", "end"])
def test_an_error_is_heard_and_nothing_is_done_after_it(hear):
    done: list[int] = []

    def work() -> None:
        with Background(most=2) as background:
            background.submit(fail)
            background.submit(done.append, 1)
            if hear != "end":
                background.submit(done.append, 2) if hear == "submit" else background.wait()
                done.append(3)

    with pytest.raises(ZeroDivisionError):
        work()
    assert done == []


def test_another_exception_goes_first_and_the_work_is_still_done():
    done: list[int] = []

    def work() -> None:
        with Background(most=2) as background:
            background.submit(done.append, 1)
            background.submit(fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
