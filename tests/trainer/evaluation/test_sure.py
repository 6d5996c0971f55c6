import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.evaluation.sure import ERROR_RATE, Sample, find_margin, images_needed, lower_bound, min_images, steps

PRECISION = 0.98


def a_sample(right, *, confirmed=0, confirmed_wrong=0):
    """Images in falling order of their margins."""
    right = np.array(right, bool)
    return Sample(np.linspace(1, 0, len(right)), right, confirmed, confirmed_wrong)


class TestTheInterval:
    @given(st.integers(1, 2000), st.data())
    def test_it_is_that_of_clopper_and_pearson(self, images, data):
        wrong = data.draw(st.integers(0, images))
        exact = stats.binomtest(images - wrong, images).proportion_ci(1 - 2 * ERROR_RATE, method="exact")
        assert lower_bound(images, wrong) == pytest.approx(exact.low, abs=1e-9)

    @given(st.integers(0, 40), st.floats(0.5, 0.995))
    def test_one_image_fewer_would_not_do(self, wrong, precision):
        images = min_images(wrong, precision)
        assert lower_bound(images, wrong) >= precision > lower_bound(images - 1, wrong)
        with pytest.raises(ValueError, match="at most 3 wrong of 3 images, got 4"):
            lower_bound(3, 4)


class TestTheMargin:
    def test_it_takes_in_as_many_as_may_be_wrong(self):
        """The lowest step that passes decides, and its own image belongs to it."""
        found = find_margin(a_sample([True] * 400), PRECISION)
        assert (found.images, found.wrong) == (max(steps(400, PRECISION)), 0)
        assert found.low == lower_bound(found.images, 0) >= PRECISION
        assert found.least_margin == np.linspace(1, 0, 400)[found.images - 1]

    def test_the_first_step_that_fails_ends_the_search(self):
        """Though a later one would pass: choosing among all of them errs more often."""
        first, *later = steps(3000, PRECISION)
        right = np.ones(3000, bool)
        right[: round(0.03 * first)] = False
        wrong = np.count_nonzero(~right)
        assert lower_bound(first, wrong) < PRECISION <= lower_bound(later[-1], wrong)
        assert find_margin(a_sample(right), PRECISION) is None

    def test_few_images_are_no_evidence(self):
        passed = [find_margin(a_sample([True] * count), PRECISION) is not None for count in (0, 182, 183)]
        assert passed == [False, False, True]

    def test_images_of_one_margin_are_accepted_together(self):
        assert find_margin(Sample(np.full(400, 0.5), np.arange(400) < 300), PRECISION) is None
        assert find_margin(Sample(np.full(400, 0.5), np.ones(400, bool)), PRECISION).images == 400

    def test_what_was_confirmed_before_counts(self):
        assert find_margin(a_sample([True] * 200, confirmed=300, confirmed_wrong=30), PRECISION) is None
        found = find_margin(a_sample([True] * 100, confirmed=300, confirmed_wrong=1), PRECISION)
        assert found.wrong == 1
        assert 300 < found.images <= 400

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300), st.randoms())
    def test_the_order_of_the_images_does_not_matter(self, images, rng):
        shuffled = [*images]
        rng.shuffle(shuffled)
        found = [
            find_margin(Sample(np.array([m for m, _ in each]), np.array([r for _, r in each])), 0.5)
            for each in (images, shuffled)
        ]
        assert found[0] == found[1]


class TestTheGuarantee:
    @pytest.mark.parametrize(("precision", "rate"), [(PRECISION, 0.05), (0.8, 0.1)])
    @pytest.mark.parametrize("curve", [(0.021, 0.0, 1), (0.012, 0.4, 2), (0.002, 0.25, 3)])
    def test_of_a_project_it_holds_over_its_versions(self, curve, precision, rate):
        """Of all that ten versions had confirmed too much is wrong in one project in twenty; at 80 %, in ten."""
        rng = np.random.default_rng(1)
        shares = [self.play_project(rng, curve, precision) for _ in range(300)]
        broken = sum(share is not None and share > 1 - precision for share in shares)
        assert broken <= stats.binom.ppf(0.999, 300, rate)

    @staticmethod
    def errs(curve, precision, rank):
        """How often the prediction at a rank in [0, 1], 0 the surest, is wrong: as often again as may be wrong."""
        least, more, power = curve
        return np.minimum(0.9, (least + more * rank**power) * (1 - precision) / (1 - PRECISION))

    def play_project(self, rng, curve, precision, *, tasks=4000, versions=10):
        """Return the share of wrong labels among those confirmed; None where none was."""
        rank, luck = rng.random(tasks), rng.random(tasks)
        held_out = np.arange(tasks) < 500  # the ranks are by chance
        waiting, noted, wrong_then = ~held_out, np.zeros(tasks, bool), np.zeros(tasks, bool)
        confirmed = errors = 0
        for version in range(1, versions + 1):
            own = np.where(rng.random(tasks) < 0.8, luck, rng.random(tasks))  # versions mostly err alike
            wrong = own < self.errs(curve, precision, rank)
            margins = 1 - np.clip(rank + rng.normal(0, 0.05, tasks), 0, 1)
            labelled = np.arange(tasks) < 50 * version
            new, old = labelled & ~noted, labelled & noted
            sample = Sample(margins[new], ~wrong[new], int(old.sum()), int(wrong_then[old].sum()))
            found = find_margin(sample, precision)
            if found is None:
                continue
            sure = margins >= found.least_margin
            confirmed, errors = confirmed + (sure & waiting).sum(), errors + (sure & waiting & wrong).sum()
            waiting &= ~sure
            fresh = held_out & sure & ~noted
            noted[fresh], wrong_then[fresh] = True, wrong[fresh]
        return errors / confirmed if confirmed else None


class TestHowManyMoreWouldDo:
    def test_without_an_error_it_is_what_is_missing(self):
        assert images_needed(a_sample([]), PRECISION) == 183
        assert images_needed(a_sample([True] * 100), PRECISION) == 83

    def test_so_many_would_do_if_they_were_like_the_others(self):
        right = np.ones(150, bool)
        right[[60, 90, 110, 130]] = False
        growth = 1 + images_needed(a_sample(right), PRECISION) / 150

        def passes(times):
            counts, wrong = np.arange(1, 151), np.cumsum(~right)
            low = stats.beta.ppf(ERROR_RATE, times * (counts - wrong), times * wrong + 1)
            return bool((low >= PRECISION).any())

        assert passes(growth)
        assert not passes(0.9 * growth)
