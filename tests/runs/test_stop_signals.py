"""SIGINT and SIGTERM become a request, and only inside the block."""

import os
import signal
import threading

import pytest

from transformer_dropout.runs.stop_signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_interrupts_nothing(number):
    with stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), stop_requests():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look():
        with stop_requests() as request:
            seen.extend([signal.getsignal(signal.SIGTERM), request.signal])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before, None]
