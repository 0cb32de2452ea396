"""A process that ends when its parent does, however the parent ends."""

import os
import signal
import sys
import threading
import time

# How long one of several processes outlives the launcher that started it.
SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent() -> None:
    """End this process at once when its standard input closes.

    The parent holds the other end of that pipe and writes nothing to it, so the system closes it when the
    parent is gone, a SIGKILL included. What is lost is what a kill loses: everything since the checkpoint.
    """

    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        if os.getpgrp() == os.getpid():
            # What this process has started shares its group and ends with it.
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    # A user's code that reads its input must not take part in this.
    descriptor = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def end_with_launcher() -> None:
    """End this process soon after the one that started it has ended, whose input it shares.

    A launcher that is asked to stop stops its processes; one that is killed leaves them to train on.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-launcher").start()
