"""What fuzzing found stays found: each input that once failed, and each seed, goes through its target again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutation import mutate_json
from tests.fuzz.targets import TARGETS

FOUND = sorted((Path(__file__).parent / "found").glob("*/*"))
OF_JSON = sorted(name for name, target in TARGETS.items() if target.is_json)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed_does_so_no_more(path):
    """As libFuzzer wrote it, or cut down to what matters."""
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_beginnings_are_parsed_or_refused(name):
    """Files that end too early are what interrupted writers leave."""
    for seed in TARGETS[name].seeds():
        for length in {0, 1, len(seed) // 2, len(seed) - 1, len(seed)}:
            TARGETS[name].run(seed[:length])


@pytest.mark.parametrize("name", TARGETS)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(name, content):
    """Without a fuzzer, for a moment."""
    TARGETS[name].run(content)


@pytest.mark.parametrize("name", OF_JSON)
@given(number=st.integers(0, 2**32))
def test_any_edit_of_json_is_parsed_or_refused(name, number):
    """Fields that are missing, of another type, repeated, nested, or of half a character."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(mutate_json(seed, number))
