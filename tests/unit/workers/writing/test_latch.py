import threading

from workers.writing.latch import Latch


def test_opens_when_all_has_happened() -> None:
    latch = Latch(1)
    latch.add()
    latch.count_down()
    assert not latch.wait(0.0)
    threading.Timer(0.01, latch.count_down).start()
    assert latch.wait(5.0)


def test_one_that_waits_for_nothing_is_open() -> None:
    assert Latch(0).wait(0.0)
