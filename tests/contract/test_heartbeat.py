import threading

from contract.heartbeat import heartbeat


def test_reports_until_the_end():
    seconds, twice = [], threading.Event()

    def report(elapsed_s):
        seconds.append(elapsed_s)
        if len(seconds) == 2:
            twice.set()

    with heartbeat(report, every_s=0.01):
        assert twice.wait(10)
    count = len(seconds)
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0.01
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert len(seconds) == count
