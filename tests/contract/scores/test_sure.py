import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.scores.sure import mark, parse_mark, percent_below

NAMES = st.text(min_size=1, max_size=20)


class TestMarks:
    @given(NAMES, st.integers(0, 10**6), st.booleans())
    def test_round_trip(self, ranking, label, other):
        assert parse_mark(mark(ranking, label, other=other)) == (ranking, label)

    @given(st.tuples(st.integers(0, 300), st.booleans()), st.tuples(st.integers(0, 300), st.booleans()))
    def test_no_mark_contains_another(self, first, second):
        """Label Studio searches for them as substrings."""
        if first != second:
            first_mark, second_mark = (mark("20261129-1", label, other=other) for label, other in (first, second))
            assert first_mark not in second_mark

    def test_other_texts_are_not_marks(self):
        for text in ("", "/sure/1.", "a/sure/.", "a/sure/1", "a/sure/1. ", None, 3, ["a/sure/1."]):
            assert parse_mark(text) is None


@pytest.mark.parametrize(("share", "percent"), [(0.8199, 81), (0.29, 29), (0.98, 98), (0.0, 0), (1.0, 100)])
def test_per_cent_are_rounded_down(share, percent):
    """But not by rounding errors: as a float, 100 times 0.29 is slightly below 29."""
    assert percent_below(share) == percent
