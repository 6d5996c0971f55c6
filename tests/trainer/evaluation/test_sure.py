import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.evaluation.sure import ERROR_RATE, Sample, find_margin, images_needed, lower_bound, min_images, steps

PRECISION = 0.98


def make_sample(right, *, confirmed=0, confirmed_wrong=0):
    """Return a sample in descending order of margins."""
    right = np.array(right, bool)
    return Sample(np.linspace(1, 0, len(right)), right, confirmed, confirmed_wrong)


class TestLowerBound:
    @given(st.integers(1, 2000), st.data())
    def test_equals_scipys_clopper_pearson_interval(self, images, data):
        wrong = data.draw(st.integers(0, images))
        exact = stats.binomtest(images - wrong, images).proportion_ci(1 - 2 * ERROR_RATE, method="exact")
        assert lower_bound(images, wrong) == pytest.approx(exact.low, abs=1e-9)

    @given(st.integers(0, 40), st.floats(0.5, 0.995))
    def test_min_images_is_the_smallest_sample(self, wrong, precision):
        images = min_images(wrong, precision)
        assert lower_bound(images, wrong) >= precision > lower_bound(images - 1, wrong)
        with pytest.raises(ValueError, match="at most 3 wrong of 3 images, got 4"):
            lower_bound(3, 4)


class TestFindMargin:
    def test_threshold_is_the_last_step_that_passes(self):
        evidence = find_margin(make_sample([True] * 400), PRECISION)
        assert (evidence.images, evidence.wrong) == (max(steps(400, PRECISION)), 0)
        assert evidence.low == lower_bound(evidence.images, 0) >= PRECISION
        assert evidence.least_margin == np.linspace(1, 0, 400)[evidence.images - 1]

    def test_first_failing_step_ends_the_search(self):
        """Even if a later one would pass: choosing the best of all steps would increase the error rate."""
        first, *later = steps(3000, PRECISION)
        right = np.ones(3000, bool)
        right[: round(0.03 * first)] = False
        wrong = np.count_nonzero(~right)
        assert lower_bound(first, wrong) < PRECISION <= lower_bound(later[-1], wrong)
        assert find_margin(make_sample(right), PRECISION) is None

    def test_no_threshold_with_too_few_images(self):
        passed = [find_margin(make_sample([True] * count), PRECISION) is not None for count in (0, 182, 183)]
        assert passed == [False, False, True]

    def test_accepts_images_with_equal_margins_together(self):
        assert find_margin(Sample(np.full(400, 0.5), np.arange(400) < 300), PRECISION) is None
        assert find_margin(Sample(np.full(400, 0.5), np.ones(400, bool)), PRECISION).images == 400

    def test_earlier_confirmations_count(self):
        assert find_margin(make_sample([True] * 200, confirmed=300, confirmed_wrong=30), PRECISION) is None
        evidence = find_margin(make_sample([True] * 100, confirmed=300, confirmed_wrong=1), PRECISION)
        assert evidence.wrong == 1
        assert 300 < evidence.images <= 400

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300), st.randoms())
    def test_result_does_not_depend_on_the_order_of_images(self, images, rng):
        shuffled = [*images]
        rng.shuffle(shuffled)
        results = [
            find_margin(Sample(np.array([m for m, _ in each]), np.array([r for _, r in each])), 0.5)
            for each in (images, shuffled)
        ]
        assert results[0] == results[1]


class TestErrorRate:
    @pytest.mark.parametrize(("precision", "rate"), [(PRECISION, 0.05), (0.8, 0.1)])
    @pytest.mark.parametrize("curve", [(0.021, 0.0, 1), (0.012, 0.4, 2), (0.002, 0.25, 3)])
    def test_error_rate_holds_over_the_versions_of_a_project(self, curve, precision, rate):
        """Over ten versions, at most 5 % of projects miss the precision; 10 % at a precision of 80 %."""
        rng = np.random.default_rng(1)
        shares = [self.simulate_project(rng, curve, precision) for _ in range(300)]
        violations = sum(share is not None and share > 1 - precision for share in shares)
        assert violations <= stats.binom.ppf(0.999, 300, rate)

    @staticmethod
    def error_probability(curve, precision, rank):
        """Return the probability of a wrong prediction at ranks from 0, the most certain, to 1."""
        intercept, slope, power = curve
        return np.minimum(0.9, (intercept + slope * rank**power) * (1 - precision) / (1 - PRECISION))

    def simulate_project(self, rng, curve, precision, *, tasks=4000, versions=10):
        """Return the share of wrong labels among the confirmed ones; None if none was confirmed."""
        rank, luck = rng.random(tasks), rng.random(tasks)
        held_out = np.arange(tasks) < 500  # ranks are random, so these are too
        in_pool, would_be_confirmed, wrong_then = ~held_out, np.zeros(tasks, bool), np.zeros(tasks, bool)
        confirmed = errors = 0
        for version in range(1, versions + 1):
            draw = np.where(rng.random(tasks) < 0.8, luck, rng.random(tasks))  # most errors are common to all versions
            wrong = draw < self.error_probability(curve, precision, rank)
            margins = 1 - np.clip(rank + rng.normal(0, 0.05, tasks), 0, 1)
            labelled = np.arange(tasks) < 50 * version
            new, old = labelled & ~would_be_confirmed, labelled & would_be_confirmed
            sample = Sample(margins[new], ~wrong[new], int(old.sum()), int(wrong_then[old].sum()))
            evidence = find_margin(sample, precision)
            if evidence is None:
                continue
            sure = margins >= evidence.least_margin
            confirmed, errors = confirmed + (sure & in_pool).sum(), errors + (sure & in_pool & wrong).sum()
            in_pool &= ~sure
            newly_sure = held_out & sure & ~would_be_confirmed
            would_be_confirmed[newly_sure], wrong_then[newly_sure] = True, wrong[newly_sure]
        return errors / confirmed if confirmed else None


class TestImagesNeeded:
    def test_is_the_difference_to_the_minimum_without_errors(self):
        assert images_needed(make_sample([]), PRECISION) == 183
        assert images_needed(make_sample([True] * 100), PRECISION) == 83

    def test_suffices_if_further_images_are_like_the_sample(self):
        right = np.ones(150, bool)
        right[[60, 90, 110, 130]] = False
        growth = 1 + images_needed(make_sample(right), PRECISION) / 150

        def passes(factor):
            counts, wrong = np.arange(1, 151), np.cumsum(~right)
            low = stats.beta.ppf(ERROR_RATE, factor * (counts - wrong), factor * wrong + 1)
            return bool((low >= PRECISION).any())

        assert passes(growth)
        assert not passes(0.9 * growth)
