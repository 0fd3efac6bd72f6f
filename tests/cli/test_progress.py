"""Progress in words, and the signals."""

import os
import signal
from types import SimpleNamespace

from pureebm.cli.progress import describe, duration, show_progress, stop_on_signals


def report(done: int, eta: float | None = 3725.0) -> SimpleNamespace:
    return SimpleNamespace(done=done, total=2000, resumed=512, failed=3, images_per_second=27.77, eta_seconds=eta)


def test_a_line_says_everything_that_the_contract_names():
    assert describe(report(1000)) == "1,000/2,000, 27.8 images/s, ETA 1:02:05, resumed 512, failed 3"
    assert "ETA ?" in describe(report(0, eta=None))


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]


def test_without_a_terminal_a_line_comes_at_the_end_and_not_at_every_batch(capfd):
    with show_progress() as show:
        for done in (500, 1000, 1500, 2000):
            show(report(done))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["2,000/2,000, 27.8 images/s, ETA 1:02:05, resumed 512, failed 3"]


def test_one_signal_sets_the_event_and_the_next_one_is_deadly():
    before = signal.getsignal(signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGTERM):
        with stop_on_signals() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set()
            assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
