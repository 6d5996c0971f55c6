"""What a labelling config says of classifying images: which `<Choices>` are for which `<Image>`, and what is stored.

The text is written by whoever may edit a project, so it is read without entities or document types.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from contract.errors import ConfigError
from contract.tasks import MOST_STEPS, path_label

MOST_CHARACTERS: Final = 2_000_000
"""Of a labelling config: tens of thousands of choices."""

_MOST_PATH_CHARACTERS: Final = 4 * MOST_CHARACTERS
"""Of all paths of a control together, in which a choice's text stands once for each choice below it."""
_MOST_KEY_CHARACTERS: Final = 1000
_OF_A_TASK: Final = re.compile(r"\$[\w[\].{}]+", re.ASCII)
"""What the editor puts a task's data in place of, wherever it stands in a value."""
_NAMED: Final = 5
"""How many refused controls are given their reason."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One label of a `<Choices>` tag."""

    value: str
    """What the annotator reads."""
    alias: str | None = None
    """What Label Studio stores in its place, where the config gives one."""
    around: tuple[str, ...] | None = None
    """What it stores of the choices around this one, the outermost first; None where choices cannot be nested."""

    @property
    def stored(self) -> str:
        """The text that Label Studio puts into results, or that of the path which it puts there."""
        return path_label((*(self.around or ()), self.alias or self.value))

    @property
    def shown(self) -> str:
        """The same with what the annotator reads in place of an alias."""
        return path_label((*(self.around or ()), self.value))

    @property
    def form(self) -> str | list[str]:
        """What stands in a result's `choices`: the editor selects nothing for any other form."""
        text = self.alias or self.value
        return text if self.around is None else [*self.around, text]


@dataclass(frozen=True, slots=True)
class ChoicesControl:
    """A `<Choices>` tag that classifies a whole image."""

    from_name: str
    """Its own name."""
    to_name: str
    """That of the `<Image>` tag."""
    value_key: str
    """Where in a task's data the image's reference lies, for `contract.tasks.find_reference`."""
    choices: tuple[Choice, ...]
    """In the order of the config; no two are stored as the same text."""
    multiple: bool
    """Whether an annotator may choose more than one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What Label Studio stores for each choice."""
        return tuple(choice.stored for choice in self.choices)


@dataclass(frozen=True, slots=True)
class _Tag:
    """An element whose tag and attribute names are in lower case: Label Studio's frontend ignores their case."""

    kind: str
    attributes: dict[str, str]
    element: ElementTree.Element
    repeated: bool = False
    """Whether it lies in a `<Repeater>`."""

    def get(self, attribute: str) -> str:
        return self.attributes.get(attribute, "")

    def has(self, attribute: str) -> bool:
        return self.get(attribute).lower() == "true"

    def __str__(self) -> str:
        return f'<{self.element.tag} name="{self.get("name")}">'


class _Refused(Exception):
    """Why a tag cannot be used, as the rest of a sentence about it."""


def parse_label_config(xml: str, wanted: str | None = None) -> tuple[ChoicesControl, ...]:
    """Find every `<Choices>` that classifies an `<Image>`, in the order of the config.

    Left out are `<Choices>` for anything but an image, those for each region (`perRegion`) or each image of a list
    (`perItem`), those whose choices come with each task (`<Choices value="$key">`, or `<Choice value="$key">` without
    an alias), what is repeated for each item of a task, and images other than `value="$key"`.

    ConfigError tells of each why, if there is none, or none of the name that is wanted.
    """
    tags = list(_tags(_parse(xml)))
    controls, refusals = _read(tags)
    names = [control.from_name for control in controls]
    if not controls:
        reasons = "; ".join(list(refusals.values())[:_NAMED])
        raise ConfigError(
            'expected a labelling config with an <Image name="image" value="$image"/> and a <Choices toName="image"> '
            f"holding at least one <Choice>, got {_inventory(tags)}{f': {reasons}' if reasons else ''}; "
            "change it in the project's labelling setup"
        )
    if wanted is not None and wanted not in names:
        reason = refusals.get(wanted)
        raise ConfigError(
            f"expected a <Choices> named {wanted}, the labelling config has {', '.join(names)}; "
            + (f"{reason}; name another" if reason else "name one")
        )
    return tuple(controls)


def _read(tags: Sequence[_Tag]) -> tuple[list[ChoicesControl], dict[str, str]]:
    """Return the controls, and a sentence for each that might have classified an image, by name."""
    named = {tag.get("name"): tag for tag in tags if tag.get("name")}
    controls: list[ChoicesControl] = []
    refusals: dict[str, str] = {}
    for tag in tags:
        if tag.kind in _CLASSIFYING or tag.kind.endswith("labels"):
            try:
                controls.append(_control(tag, named))
            except _Refused as reason:
                refusals.setdefault(tag.get("name"), f"{tag} {reason}")
    return controls, refusals


_CLASSIFYING: Final = frozenset({"choices", "taxonomy", "rating", "pairwise", "ranker"})


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type before there is an entity to expand."""

    def doctype(self, *_: object) -> None:
        """Raise ConfigError."""
        raise ConfigError("expected a labelling config without <!DOCTYPE> and <!ENTITY>, got one with; remove them")


def _parse(xml: str) -> ElementTree.Element:
    if len(xml) > MOST_CHARACTERS:
        raise ConfigError(f"expected a labelling config of at most {MOST_CHARACTERS} characters, got {len(xml)}")
    try:
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - without entities there is nothing to expand
        return ElementTree.fromstring(xml, parser)  # noqa: S314
    except (ElementTree.ParseError, UnicodeEncodeError) as err:  # a surrogate by itself is a character of JSON only
        raise ConfigError(
            f"expected a labelling config in XML, got {len(xml)} characters that are not ({err}); "
            "copy it from the Code view of the project's labelling setup"
        ) from err


def _tags(root: ElementTree.Element) -> Iterator[_Tag]:
    """Every tag in the order of the config: thousands may be nested."""
    left = [(root, False)]
    while left:
        element, repeated = left.pop()
        tag = _tag(element, repeated)
        yield tag
        left += [(child, repeated or tag.kind == "repeater") for child in reversed(element)]


def _tag(element: ElementTree.Element, repeated: bool = False) -> _Tag:
    """As the editor reads it: text in a tag goes before its `value`."""
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    if not len(element) and (text := (element.text or "").strip()):
        attributes["value"] = escape(text)
    return _Tag(element.tag.lower(), attributes, element, repeated)


# ---- which image


def _key_of(image: _Tag) -> str:
    """The key in `$key`; a value with text around the key is not one reference to one image."""
    value = image.get("value").strip()  # browsers strip addresses
    if image.repeated:
        raise _Refused("is repeated for each image of a task; make a task of each image")
    if image.get("valuelist"):
        raise _Refused(f'shows a list of images (valueList="{image.get("valuelist")}"); make a task of each image')
    if not value.startswith("$") or "$" in value[1:] or not 1 < len(value) <= _MOST_KEY_CHARACTERS:
        raise _Refused(
            f'takes its address from value="{value[:_MOST_KEY_CHARACTERS]}", not from one key as in "$image"'
        )
    return value[1:]


def _image_of(control: _Tag, named: Mapping[str, _Tag]) -> tuple[str, str]:
    """The name of the first image that a control classifies, and its key."""
    reasons: list[str] = []
    for name in filter(None, map(str.strip, control.get("toname").split(","))):
        tag = named.get(name)
        try:
            if tag is not None and tag.kind == "image":
                return name, _key_of(tag)
            reasons.append(f"is for {tag or f'{name}, which no tag is called'}, not for an <Image>")
        except _Refused as reason:
            reasons.append(f"is for {tag}, which {reason}")
    raise _Refused(reasons[0] if reasons else "is for no tag: its toName is empty")


# ---- which choices


def _control(tag: _Tag, named: Mapping[str, _Tag]) -> ChoicesControl:
    if tag.kind != "choices":
        raise _Refused("is no <Choices>, the only tag that is learnt from")
    if not tag.get("name"):
        raise _Refused("has no name")
    if tag.has("perregion"):
        raise _Refused('is for each region, not for the whole image (perRegion="true")')
    if tag.has("peritem"):
        raise _Refused('is for each image of a list (perItem="true"); make a task of each image')
    if tag.repeated:
        raise _Refused("is repeated for each item of a task; make a task of each image")
    to_name, key = _image_of(tag, named)
    choices = _choices(tag.element, nested=tag.has("allownested"))
    if not choices and tag.get("value").startswith("$"):
        raise _Refused(f'takes its choices from each task (value="{tag.get("value")}"); list them in the config')
    if not choices:
        raise _Refused("holds no <Choice> with a value")
    return ChoicesControl(
        from_name=tag.get("name"),
        to_name=to_name,
        value_key=key,
        choices=choices,
        multiple=tag.get("choice").lower() == "multiple",
    )


def _choices(control: ElementTree.Element, *, nested: bool) -> tuple[Choice, ...]:
    """Every choice that can be in a result, however deep it lies in `<View>`; of those stored alike the first.

    Of nested ones that is each without choices in it. Where they may not be nested, the editor shows none within
    another.
    """
    found: dict[str, Choice] = {}
    characters = 0
    for choice in _leaves(control, nested=nested):
        characters += len(choice.stored)
        if characters > _MOST_PATH_CHARACTERS:
            raise _Refused(f"has paths of more than {_MOST_PATH_CHARACTERS} characters in all; nest its choices less")
        for text in (*(choice.around or ()), *(() if choice.alias else (choice.value,))):
            if _OF_A_TASK.search(text):
                shown = text[:_MOST_KEY_CHARACTERS]
                raise _Refused(f'has a choice whose text comes from each task (value="{shown}"); give it an alias')
        if found.setdefault(choice.stored, choice).form != choice.form:
            raise _Refused(f"has two choices that would both be called {choice.stored!r}; rename one")
    return tuple(found.values())


def _leaves(control: ElementTree.Element, *, nested: bool) -> Iterator[Choice]:
    left: list[tuple[_Tag, tuple[str, ...]]] = [(tag, ()) for tag in _children(control)]
    while left:
        tag, around = left.pop()
        children = _children(tag.element)
        if tag.kind != "choice":
            left += [(child, around) for child in children]
        elif not nested or not any(child.kind == "choice" for child in children):
            if tag.get("value"):
                yield Choice(tag.get("value"), tag.get("alias") or None, around if nested else None)
        elif len(around) < MOST_STEPS:
            left += [(child, (*around, tag.get("alias") or tag.get("value"))) for child in children]
        else:
            raise _Refused(f"nests its choices deeper than {MOST_STEPS}; nest them less")


def _children(element: ElementTree.Element) -> list[_Tag]:
    """The tags in an element, last one first; what another `<Choices>` holds is not the control's."""
    return [_tag(child) for child in reversed(element) if child.tag.lower() != "choices"]


def _inventory(tags: Sequence[_Tag]) -> str:
    """The tags that a reader of the message would look for, as they are in the config."""
    named = [str(tag) for tag in tags if tag.get("name")]
    return ", ".join(named) if named else "no named tag"
