from bench.choosing import make_candidates, measure


def test_measures_the_time_to_order_a_pool():
    assert 0 < measure(make_candidates(400, classes=10), batch=20, labels=1, duplicates=True) < 60
