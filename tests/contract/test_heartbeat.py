import threading

from contract.heartbeat import heartbeat


def test_reports_until_the_end():
    reported, twice = [], threading.Event()

    def report(seconds):
        reported.append(seconds)
        if len(reported) == 2:
            twice.set()

    with heartbeat(report, every_s=0.01):
        assert twice.wait(10)
    count = len(reported)
    assert reported == sorted(reported)
    assert reported[0] >= 0.01
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert len(reported) == count
