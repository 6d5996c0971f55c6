import threading

from contract.heartbeat import heartbeat


def test_what_takes_long_tells_so_meanwhile():
    told, twice = [], threading.Event()

    def tell(seconds):
        told.append(seconds)
        if len(told) == 2:
            twice.set()

    with heartbeat(tell, every_s=0.01):
        assert twice.wait(10)
    count = len(told)
    assert told == sorted(told)
    assert told[0] >= 0.01
    assert not any(thread.name == "life" for thread in threading.enumerate())
    assert len(told) == count
