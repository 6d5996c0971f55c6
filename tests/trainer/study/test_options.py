import pytest

from contract.errors import ConfigError
from trainer.ordering.strategies import STRATEGIES
from trainer.study.options import BAAL_BALD, CORE_SET, PRODUCT, RANDOM, STUDIED, check


def test_all_of_production_and_its_rivals_are_studied():
    """Each once; random, which the others are held against, is one of production's."""
    assert set(STUDIED) == {*STRATEGIES, PRODUCT, CORE_SET, BAAL_BALD}
    assert len(set(STUDIED)) == len(STUDIED)
    assert RANDOM in STRATEGIES
    check(STUDIED)
    check([RANDOM])


@pytest.mark.parametrize(
    ("strategies", "got"),
    [(["random", "bold"], "random, bold"), (["bald", "bald"], "bald, bald"), ([], "none"), ([""], "none")],
)
def test_others_none_and_one_twice_are_refused(strategies, got):
    """The error names those that there are."""
    with pytest.raises(ConfigError, match=f"labelnext, balanced-bald-margin.*core-set.*each once, got {got}$"):
        check(strategies)
