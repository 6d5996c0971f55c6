import pytest

from contract.tasks import find_reference, labels_in


class TestResults:
    @pytest.mark.parametrize(
        ("choices", "labels"),
        [
            (["red"], ("red",)),
            ("red", ("red",)),
            ([["colour", "red"]], ("colour > red",)),
            ([["colour"], ["colour", "red"], ["colour", "green"]], ("colour > red", "colour > green")),
            ([["plain"], ["colour", "red"]], ("plain", "colour > red")),
            (["red", "red"], ("red",)),
            ([1], ("1",)),
            ([], ()),
            ("", ()),
            (None, ()),
            ([None, {}, []], ()),
        ],
    )
    def test_every_form_of_choices_is_read(self, choices, labels):
        """A list of texts, a text, and lists of paths, in which the parents of a choice are not labels."""
        assert labels_in({"choices": choices}) == labels

    @pytest.mark.parametrize("value", [None, "red", [], {}])
    def test_value_without_choices_has_no_labels(self, value):
        assert labels_in(value) == ()


class TestReferences:
    @pytest.mark.parametrize(
        ("data", "key", "reference"),
        [
            ({"image": "a.png"}, "image", "a.png"),
            ({"image": {"url": "a.png"}}, "image.url", "a.png"),
            ({"images": ["a.png", "b.png"]}, "images[0]", "a.png"),
            ({"images": ["a.png", "b.png"]}, "images.1", "b.png"),
            ({"photos": [{"file": {"url": "a.png"}}]}, "photos[0].file.url", "a.png"),
            ({"image.url": "a.png", "image": {"url": "b.png"}}, "image.url", "a.png"),
            ({"images": {"0": "a.png"}}, "images[0]", "a.png"),
            ({"images": ["a.png"]}, "images[1]", None),
            ({"images": ["a.png"]}, "images[00]", None),
            ({"images": ["a.png"]}, "images[-1]", None),
            ({"images": ["a.png"]}, "images", "a.png"),
            ({"image": {"urls": ["a.png"]}}, "image.urls", "a.png"),
            ({"images": ["a.png", "b.png"]}, "images", None),
            ({"images": [["a.png"]]}, "images", None),
            ({"image": {"url": 3}}, "image.url", None),
            ({"image": ""}, "image", None),
            ({}, "image.url", None),
        ],
    )
    def test_paths_are_resolved_as_in_label_studio(self, data, key, reference):
        """An exact key takes precedence. A list of several images counts as none."""
        assert find_reference(data, key) == reference
