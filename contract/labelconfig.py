"""The `<Choices>` controls of a Label Studio labelling config that classify an `<Image>`.

Anybody who may edit a project writes the config, so it is parsed without entities and document types.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from contract.errors import ConfigError
from contract.tasks import MAX_DEPTH, path_label

MAX_CHARACTERS: Final = 2_000_000
"""Characters of a labelling config: enough for tens of thousands of choices."""

_MAX_PATH_CHARACTERS: Final = 4 * MAX_CHARACTERS
"""Characters of all paths of a control, each of which repeats the texts of the choices above it."""
_MAX_KEY_CHARACTERS: Final = 1000
_TASK_VARIABLE: Final = re.compile(r"\$[\w[\].{}]+", re.ASCII)
"""A variable that the editor replaces by a value of the task's data."""
_SHOWN_REASONS: Final = 5
"""Unusable controls whose reason is in a message."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of a `<Choices>` tag."""

    value: str
    """The text that annotators see."""
    alias: str | None = None
    """The text that Label Studio stores instead, if there is one."""
    parents: tuple[str, ...] | None = None
    """The stored texts of the choices above it, the outermost first; None if choices cannot be nested."""

    @property
    def stored(self) -> str:
        """The label as Label Studio stores it, joined to one text if choices are nested."""
        return path_label((*(self.parents or ()), self.alias or self.value))

    @property
    def displayed(self) -> str:
        """The label as annotators see it."""
        return path_label((*(self.parents or ()), self.value))

    @property
    def result_value(self) -> str | list[str]:
        """The element in a result's `choices`; the editor ignores any other form."""
        text = self.alias or self.value
        return text if self.parents is None else [*self.parents, text]


@dataclass(frozen=True, slots=True)
class ChoicesControl:
    """A `<Choices>` tag that classifies whole images."""

    from_name: str
    """The name of the `<Choices>` tag."""
    to_name: str
    """The name of the `<Image>` tag."""
    value_key: str
    """The key of the image's reference in a task's data, for `contract.tasks.find_reference`."""
    choices: tuple[Choice, ...]
    """In the order of the config, with distinct stored labels."""
    multiple: bool
    """Whether annotators may choose several."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label that Label Studio stores for each choice."""
        return tuple(choice.stored for choice in self.choices)

    def find_choices(self, labels: Iterable[str]) -> tuple[Choice | None, ...]:
        """Return the choice of each label, as stored or else as displayed; None for a label that the config lacks."""
        by_displayed = {choice.displayed: choice for choice in reversed(self.choices)}
        by_name = {**by_displayed, **{choice.stored: choice for choice in self.choices}}
        return tuple(map(by_name.get, labels))


@dataclass(frozen=True, slots=True)
class _Tag:
    """An element with lower-case tag and attribute names: Label Studio's frontend ignores case."""

    kind: str
    attributes: dict[str, str]
    element: ElementTree.Element
    repeated: bool = False
    """Whether it is inside a `<Repeater>`."""

    def get(self, attribute: str) -> str:
        return self.attributes.get(attribute, "")

    def has(self, attribute: str) -> bool:
        return self.get(attribute).lower() == "true"

    def __str__(self) -> str:
        return f'<{self.element.tag} name="{self.get("name")}">'


class _UnusableTag(Exception):
    """A tag cannot be used; the message is the rest of a sentence about it."""


def parse_label_config(xml: str, name: str | None = None) -> tuple[ChoicesControl, ...]:
    """Return every `<Choices>` that classifies an `<Image>`, in the order of the config.

    Skipped are `<Choices>` for other tags, for regions (`perRegion`) or for each image of a list (`perItem`), those
    whose choices come from the task (`<Choices value="$key">`, or `<Choice value="$key">` without an alias), repeated
    tags, and images other than `value="$key"`.

    Raises:
        ConfigError: if there is none, or none of that name, with the reasons; or if the config is not XML, declares a
            document type, or has more than `MAX_CHARACTERS`.
    """
    tags = list(_tags(_parse(xml)))
    controls, reasons_by_name = _read(tags)
    names = [control.from_name for control in controls]
    if not controls:
        reasons = "; ".join(list(reasons_by_name.values())[:_SHOWN_REASONS])
        raise ConfigError(
            'expected a labelling config with an <Image name="image" value="$image"/> and a <Choices toName="image"> '
            f"with at least one <Choice>, got {_inventory(tags)}{f': {reasons}' if reasons else ''}; "
            "change it in the project's labelling setup"
        )
    if name is not None and name not in names:
        reason = reasons_by_name.get(name)
        raise ConfigError(
            f"expected a <Choices> named {name}, the labelling config has {', '.join(names)}; "
            + (f"{reason}; name another" if reason else "name one")
        )
    return tuple(controls)


def _read(tags: Sequence[_Tag]) -> tuple[list[ChoicesControl], dict[str, str]]:
    """Return the controls, and by name the reason for each that cannot be used."""
    named = {tag.get("name"): tag for tag in tags if tag.get("name")}
    controls: list[ChoicesControl] = []
    reasons: dict[str, str] = {}
    for tag in tags:
        if tag.kind in _CLASSIFYING or tag.kind.endswith("labels"):
            try:
                controls.append(_control(tag, named))
            except _UnusableTag as reason:
                reasons.setdefault(tag.get("name"), f"{tag} {reason}")
    return controls, reasons


_CLASSIFYING: Final = frozenset({"choices", "taxonomy", "rating", "pairwise", "ranker"})


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types, and thereby entities."""

    def doctype(self, *_: object) -> None:
        """Raise ConfigError."""
        raise ConfigError("expected a labelling config without <!DOCTYPE> and <!ENTITY>, got one with; remove them")


def _parse(xml: str) -> ElementTree.Element:
    if len(xml) > MAX_CHARACTERS:
        raise ConfigError(
            f"expected a labelling config of at most {MAX_CHARACTERS} characters, got {len(xml)}; shorten it in the "
            "project's labelling setup"
        )
    try:
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - the builder refuses entities
        return ElementTree.fromstring(xml, parser)  # noqa: S314
    except (ElementTree.ParseError, UnicodeEncodeError) as err:  # JSON allows a lone surrogate
        raise ConfigError(
            f"expected a labelling config in XML, got {len(xml)} characters that are not ({err}); "
            "copy it from the Code view of the project's labelling setup"
        ) from err


def _tags(root: ElementTree.Element) -> Iterator[_Tag]:
    """Yield every tag in the order of the config, without recursion: thousands may be nested."""
    stack = [(root, False)]
    while stack:
        element, repeated = stack.pop()
        tag = _tag(element, repeated)
        yield tag
        stack += [(child, repeated or tag.kind == "repeater") for child in reversed(element)]


def _tag(element: ElementTree.Element, repeated: bool = False) -> _Tag:
    """Return a tag as the editor reads it: text inside it overrides its `value`."""
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    if not len(element) and (text := (element.text or "").strip()):
        attributes["value"] = escape(text)
    return _Tag(element.tag.lower(), attributes, element, repeated)


# ---- which image


def _key_of(image: _Tag) -> str:
    """Return the key of `$key`; refuse values that are not one reference to one image."""
    value = image.get("value").strip()  # browsers strip URLs
    if image.repeated:
        raise _UnusableTag("is repeated for each image of a task; make a task of each image")
    if image.get("valuelist"):
        raise _UnusableTag(f'shows a list of images (valueList="{image.get("valuelist")}"); make a task of each image')
    if not value.startswith("$") or "$" in value[1:] or not 1 < len(value) <= _MAX_KEY_CHARACTERS:
        raise _UnusableTag(f'has value="{value[:_MAX_KEY_CHARACTERS]}", where one key is expected, such as "$image"')
    return value[1:]


def _image_of(control: _Tag, named: Mapping[str, _Tag]) -> tuple[str, str]:
    """Return the name and key of the first image that a control classifies."""
    reasons: list[str] = []
    for name in filter(None, map(str.strip, control.get("toname").split(","))):
        tag = named.get(name)
        try:
            if tag is not None and tag.kind == "image":
                return name, _key_of(tag)
            reasons.append(f"is for {tag or f'{name}, which no tag is named'}, not for an <Image>")
        except _UnusableTag as reason:
            reasons.append(f"is for {tag}, which {reason}")
    raise _UnusableTag(reasons[0] if reasons else "is for no tag: its toName is empty")


# ---- which choices


def _control(tag: _Tag, named: Mapping[str, _Tag]) -> ChoicesControl:
    if tag.kind != "choices":
        raise _UnusableTag("is not a <Choices>, the only tag that is supported")
    if not tag.get("name"):
        raise _UnusableTag("has no name")
    if tag.has("perregion"):
        raise _UnusableTag('is for each region, not for the whole image (perRegion="true")')
    if tag.has("peritem"):
        raise _UnusableTag('is for each image of a list (perItem="true"); make a task of each image')
    if tag.repeated:
        raise _UnusableTag("is repeated for each item of a task; make a task of each image")
    to_name, key = _image_of(tag, named)
    choices = _choices(tag.element, nested=tag.has("allownested"))
    if not choices and tag.get("value").startswith("$"):
        raise _UnusableTag(
            f'has choices that come from each task (value="{tag.get("value")}"); list them in the config'
        )
    if not choices:
        raise _UnusableTag("has no <Choice> with a value")
    return ChoicesControl(
        from_name=tag.get("name"),
        to_name=to_name,
        value_key=key,
        choices=choices,
        multiple=tag.get("choice").lower() == "multiple",
    )


def _choices(control: ElementTree.Element, *, nested: bool) -> tuple[Choice, ...]:
    """Return every choice that a result can contain, at any depth of `<View>`; of equal stored labels the first.

    With nested choices these are the leaves. Otherwise the editor shows no choice inside another.
    """
    choices: dict[str, Choice] = {}
    characters = 0
    for choice in _leaves(control, nested=nested):
        characters += len(choice.stored)
        if characters > _MAX_PATH_CHARACTERS:
            raise _UnusableTag(
                f"has paths of more than {_MAX_PATH_CHARACTERS} characters in all; nest its choices less"
            )
        for text in (*(choice.parents or ()), *(() if choice.alias else (choice.value,))):
            if _TASK_VARIABLE.search(text):
                shown = text[:_MAX_KEY_CHARACTERS]
                raise _UnusableTag(f'has a choice whose text comes from each task (value="{shown}"); give it an alias')
        if choices.setdefault(choice.stored, choice).result_value != choice.result_value:
            raise _UnusableTag(f"has two choices with the label {choice.stored!r}; rename one")
    return tuple(choices.values())


def _leaves(control: ElementTree.Element, *, nested: bool) -> Iterator[Choice]:
    stack: list[tuple[_Tag, tuple[str, ...]]] = [(tag, ()) for tag in _children(control)]
    while stack:
        tag, parents = stack.pop()
        children = _children(tag.element)
        if tag.kind != "choice":
            stack += [(child, parents) for child in children]
        elif not nested or not any(child.kind == "choice" for child in children):
            if tag.get("value"):
                yield Choice(tag.get("value"), tag.get("alias") or None, parents if nested else None)
        elif len(parents) < MAX_DEPTH:
            stack += [(child, (*parents, tag.get("alias") or tag.get("value"))) for child in children]
        else:
            raise _UnusableTag(f"nests its choices deeper than {MAX_DEPTH}; nest them less")


def _children(element: ElementTree.Element) -> list[_Tag]:
    """Return the child tags in reverse order, without nested `<Choices>`."""
    return [_tag(child) for child in reversed(element) if child.tag.lower() != "choices"]


def _inventory(tags: Sequence[_Tag]) -> str:
    """Return the named tags, for a message."""
    named = [str(tag) for tag in tags if tag.get("name")]
    return ", ".join(named) if named else "no named tag"
