from bench.choosing import make_candidates, measure


def test_a_pool_is_put_in_order():
    assert 0 < measure(make_candidates(400, classes=10), batch=20, labels=1, duplicates=True) < 60
