"""What a Label Studio labelling config says about classifying images; nothing else of it is looked at.

Owns the reading of the XML: which `<Choices>` classify which `<Image>`, and what Label Studio stores for each choice.
The text is written by whoever may edit a project, so it is read without entities or document types.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from contract.errors import ConfigError

MOST_CHARACTERS: Final = 2_000_000
"""Of a labelling config: tens of thousands of choices."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One label of a `<Choices>` tag."""

    value: str
    """What the annotator reads."""
    alias: str | None = None
    """What Label Studio stores in its place, where the config gives one."""

    @property
    def stored(self) -> str:
        """The text that Label Studio puts into results."""
        return self.alias or self.value


@dataclass(frozen=True, slots=True)
class ChoicesControl:
    """A `<Choices>` tag that classifies a whole image."""

    from_name: str
    """The name of the `<Choices>` tag."""
    to_name: str
    """The name of the `<Image>` tag that it classifies."""
    value_key: str
    """The key of a task's data under which the image's reference lies."""
    choices: tuple[Choice, ...]
    """In the order of the config; no two are stored as the same text."""
    multiple: bool
    """Whether an annotator may choose more than one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What Label Studio stores for each choice, in the order of the config."""
        return tuple(choice.stored for choice in self.choices)


@dataclass(frozen=True, slots=True)
class _Tag:
    """An element whose tag and attribute names are in lower case: Label Studio's frontend ignores their case."""

    kind: str
    attributes: dict[str, str]
    element: ElementTree.Element

    def get(self, attribute: str) -> str:
        return self.attributes.get(attribute, "")


def parse_label_config(xml: str) -> tuple[ChoicesControl, ...]:
    """Find every `<Choices>` that classifies an `<Image>`, in the order of the config.

    Left out are `<Choices>` for anything but an image, those for each region (`perRegion`), those whose choices come
    with each task (`<Choices value="$key">`), and images other than `value="$key"`.

    Raises:
        ConfigError: if the text is not XML, declares a document type, or classifies no image.
    """
    tags = list(_tags(_parse(xml)))
    images = {
        name: key
        for tag in tags
        if tag.kind == "image" and (name := tag.get("name")) and (key := _task_key(tag.get("value")))
    }
    controls = tuple(control for tag in tags if (control := _control(tag, images)))
    if not controls:
        raise ConfigError(
            'expected a labelling config with an <Image name="image" value="$image"/> and a <Choices toName="image"> '
            f"holding at least one <Choice>, got {_inventory(tags)}; change it in the project's labelling setup"
        )
    return controls


def choose_control(controls: Sequence[ChoicesControl], *, name: str | None, labels: Sequence[str]) -> ChoicesControl:
    """Pick the control that a model with these labels answers for.

    The one named `name` if it is there, else the one sharing most labels (stored or displayed); the first of equals.

    Raises:
        ConfigError: if there is nothing to choose from.
    """
    if not controls:
        raise ConfigError("expected at least one <Choices> for an <Image>, got none; check the labelling config")
    for control in controls:
        if control.from_name == name:
            return control
    wanted = set(labels)
    return max(controls, key=lambda control: _shared(control, wanted))  # max keeps the first of equals


def _shared(control: ChoicesControl, wanted: set[str]) -> int:
    return sum(choice.stored in wanted or choice.value in wanted for choice in control.choices)


def _parse(xml: str) -> ElementTree.Element:
    if len(xml) > MOST_CHARACTERS:
        raise ConfigError(f"expected a labelling config of at most {MOST_CHARACTERS} characters, got {len(xml)}")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ConfigError("expected a labelling config without <!DOCTYPE> and <!ENTITY>, got one with; remove them")
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 - without entities, which are refused above, there is nothing to expand
    except (ElementTree.ParseError, UnicodeEncodeError) as err:  # a surrogate by itself is a character of JSON only
        raise ConfigError(
            f"expected a labelling config in XML, got {len(xml)} characters that are not ({err}); "
            "copy it from the Code view of the project's labelling setup"
        ) from err


def _tags(root: ElementTree.Element) -> Iterator[_Tag]:
    return map(_tag, root.iter())


def _tag(element: ElementTree.Element) -> _Tag:
    return _Tag(element.tag.lower(), {name.lower(): value for name, value in element.attrib.items()}, element)


def _tags_of_its_own(element: ElementTree.Element) -> Iterator[_Tag]:
    """The tags below an element in their order, but for those below one of its kind: thousands may be nested."""
    left = [element]
    while left:
        parent = left.pop()
        if parent is not element:
            yield _tag(parent)
        left += [child for child in reversed(parent) if child.tag.lower() != "choices"]


def _task_key(value: str) -> str | None:
    """The key in `$key`; a value with text around the key is not one reference to one image."""
    return value[1:] if value.startswith("$") and len(value) > 1 else None


def _control(tag: _Tag, images: dict[str, str]) -> ChoicesControl | None:
    if tag.kind != "choices" or not tag.get("name") or tag.get("perregion").lower() == "true":
        return None
    to_name = next((name for part in tag.get("toname").split(",") if (name := part.strip()) in images), None)
    choices = _choices(tag.element)
    if to_name is None or not choices:
        return None
    return ChoicesControl(
        from_name=tag.get("name"),
        to_name=to_name,
        value_key=images[to_name],
        choices=choices,
        multiple=tag.get("choice").lower() == "multiple",
    )


def _choices(element: ElementTree.Element) -> tuple[Choice, ...]:
    """Every choice below the element, however deep it lies in `<View>` or another `<Choice>`."""
    found: dict[str, Choice] = {}
    for tag in _tags_of_its_own(element):
        if tag.kind == "choice" and tag.get("value"):
            choice = Choice(tag.get("value"), tag.get("alias") or None)
            found.setdefault(choice.stored, choice)
    return tuple(found.values())


def _inventory(tags: Sequence[_Tag]) -> str:
    """The tags that a reader of the message would look for, as they are in the config."""
    named = [f'<{tag.element.tag} name="{tag.get("name")}">' for tag in tags if tag.get("name")]
    return ", ".join(named) if named else "no named tag"
