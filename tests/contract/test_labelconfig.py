import string
import time
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.labelconfig import Choice, ChoicesControl, parse_label_config


def config(*tags):
    """Return a labelling config with these tags."""
    return f"<View>{''.join(tags)}</View>"


def choices(*labels, inner="", name="label", to_name="image", more=""):
    """Return a `<Choices>` tag."""
    inner = inner or "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return f'<Choices name="{name}" toName="{to_name}" {more}>{inner}</Choices>'


def image(name="image", value="$image"):
    """Return an `<Image>` tag."""
    return f'<Image name="{name}" value="{value}"/>'


def only_control(*tags):
    """Return the only control of a config with an image and these tags."""
    (control,) = parse_label_config(config(image(), *tags))
    return control


SIMPLE = config(image(), choices("cat", "dog"))
TEXT = '<Text name="t" value="$t"/>'


class TestParsing:
    def test_simplest_config_has_one_control(self):
        assert parse_label_config(SIMPLE) == (
            ChoicesControl("label", "image", "image", (Choice("cat"), Choice("dog")), False),
        )

    @pytest.mark.parametrize(
        ("inner", "labels"),
        [
            pytest.param('<Choice value="Cat" alias="c1"/><Choice value="Dog"/>', ("c1", "Dog"), id="alias"),
            pytest.param(
                '<View><Choice value="a"/></View><Choice value="b"/><Header value="x"/>'
                '<View><View><Choice value="c"/></View></View>',
                ("a", "b", "c"),
                id="at any depth",
            ),
            pytest.param(
                '<Choice value="red">Rouge</Choice><Choice value="green">\n</Choice>'
                '<Choice value="b">a &amp; b</Choice>',
                ("Rouge", "green", "a &amp; b"),
                id="text overrides the value",
            ),
            pytest.param(
                '<Choice value="$first" alias="1"/><Choice value="the other: $second" alias="2"/>'
                '<Choice value="US$ -"/>',
                ("1", "2", "US$ -"),
                id="alias of a text from the task",
            ),
            pytest.param('<Choice value="a"/><Choice value="b"/><Choice value="a"/>', ("a", "b"), id="duplicate"),
        ],
    )
    def test_label_is_the_text_that_label_studio_stores(self, inner, labels):
        """In document order. A $ without a key is literal, and white space does not count as text."""
        assert only_control(choices(inner=inner)).labels == labels

    def test_each_control_has_its_own_image(self):
        """The first image of several targets."""
        tags = [choices("a", name="x", to_name="t, right"), choices("b", name="y", to_name="left, right")]
        controls = parse_label_config(config(TEXT, image("left", "$l"), image("right", "$r"), *tags))
        found = [(each.from_name, each.to_name, each.value_key) for each in controls]
        assert found == [("x", "right", "r"), ("y", "left", "l")]

    @pytest.mark.parametrize(("mode", "multiple"), [("single", False), ("single-radio", False), ("multiple", True)])
    def test_choice_attribute(self, mode, multiple):
        assert only_control(choices("a", more=f'choice="{mode}"')).multiple is multiple

    def test_ignores_case_of_tags_and_attributes(self):
        """As Label Studio's frontend does."""
        xml = '<View><image name="i" value="$u"/><choices name="c" toname="i"><choice value="A"/></choices></View>'
        assert parse_label_config(xml)[0].labels == ("A",)

    def test_nested_choices_are_paths(self):
        """The leaves are labels; without allowNested the editor shows no choice inside another."""
        inner = (
            '<Choice value="Colour" alias="c"><Choice value="Red" alias="r"/><Choice value="blue"/></Choice>'
            '<View><Choice value="plain"/></View>'
        )
        nested, flat = (only_control(choices(inner=inner, more=more)) for more in ('allowNested="true"', ""))
        assert nested.labels == ("c > r", "c > blue", "plain")
        assert [choice.result_value for choice in nested.choices] == [["c", "r"], ["c", "blue"], ["plain"]]
        assert flat.labels == ("c", "plain")
        assert [choice.result_value for choice in flat.choices] == ["c", "plain"]

    @pytest.mark.parametrize(
        "xml",
        [
            '<?xml version="1.0" encoding="utf-8"?>' + SIMPLE,
            "<!-- <!DOCTYPE html> -->" + SIMPLE,
            SIMPLE.replace("<View>", "<View><Header><![CDATA[<!ENTITY a>]]></Header>"),
            SIMPLE.replace('value="dog"', 'value="dog" hint="&lt;!DOCTYPE&gt;"'),
        ],
        ids=["declaration", "comment", "cdata", "attribute"],
    )
    def test_accepts_document_types_in_comments_and_text(self, xml):
        assert parse_label_config(xml)[0].labels == ("cat", "dog")

    def test_strips_the_key_of_an_image(self):
        """Browsers strip URLs."""
        assert parse_label_config(config(image(value=" $image "), choices("a")))[0].value_key == "image"

    @given(st.lists(st.text(string.printable + "äß猫", min_size=1), min_size=1, unique=True))
    def test_any_text_is_a_label(self, labels):
        """In any script, with spaces and quotes, but without $, which Label Studio interprets."""
        printable = [label for label in labels if label.isprintable() and "$" not in label]
        if printable:
            assert only_control(choices(*printable)).labels == tuple(printable)

    @pytest.mark.slow
    def test_choices_belong_to_the_innermost_control(self):
        """Thousands of nested controls are parsed in linear time."""
        depth = 20_000
        tags = "".join(f'<Choices name="c{i}" toName="image"><Choice value="{i}"/>' for i in range(depth))
        started = time.process_time()
        controls = parse_label_config(config(image(), tags + "</Choices>" * depth))
        assert time.process_time() - started < 10
        assert [control.labels for control in controls] == [(str(i),) for i in range(depth)]

    @pytest.mark.parametrize(
        ("inner", "reason"),
        [
            ('<Choice value="a">' * 20_000 + '<Choice value="b"/>' + "</Choice>" * 20_000, "deeper than 100"),
            ('<Choice value="' + "a" * 10_000 + '">' + '<Choice value="b"/>' * 1000 + "</Choice>", "characters in all"),
            (
                '<Choice value="a"><Choice value="b"/></Choice><Choice value="a > b"/>',
                "two choices with the label 'a > b'",
            ),
        ],
        ids=["deep", "long", "ambiguous"],
    )
    def test_rejects_too_deep_long_or_ambiguous_paths(self, inner, reason):
        """A small config must not grow into a large one."""
        with pytest.raises(ConfigError, match=reason):
            only_control(choices(inner=inner, more='allowNested="true"'))


class TestRefusal:
    def test_rejects_a_config_of_many_megabytes(self):
        with pytest.raises(ConfigError, match="at most 2000000 characters, got"):
            parse_label_config(config(image(), choices("a")) + " " * 2_000_000)

    @pytest.mark.parametrize(
        "xml",
        ["", "cats and dogs", "<View>", "<View></Vie>", "<View>&undefined;</View>", "<View/><View/>", "<\ud800/>"],
    )
    def test_rejects_invalid_xml(self, xml):
        with pytest.raises(ConfigError, match="Code view"):
            parse_label_config(xml)

    @pytest.mark.parametrize(
        "xml",
        [
            '<!DOCTYPE View [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + SIMPLE,
            '<!DOCTYPE View SYSTEM "file:///etc/passwd">' + SIMPLE,
            '<?xml version="1.0"?>\n<!DOCTYPE View>' + SIMPLE,
        ],
    )
    def test_rejects_document_types(self, xml):
        """Entities expand to large texts or read files; labelling configs have none."""
        with pytest.raises(ConfigError, match="DOCTYPE"):
            parse_label_config(xml)

    @pytest.mark.parametrize(
        ("xml", "tags"),
        [
            ("<View/>", "no named tag"),
            (config(image()), '<Image name="image">'),
            (config(TEXT, choices("a", to_name="t")), '<Choices name="label">'),
            (config(image(), choices(name="c")), '<Choices name="c">'),
        ],
    )
    def test_rejects_a_config_that_classifies_no_image(self, xml, tags):
        with pytest.raises(ConfigError, match="expected a labelling config with an <Image") as caught:
            parse_label_config(xml)
        assert tags in str(caught.value)

    @pytest.mark.parametrize(
        ("tag", "context", "reason"),
        [
            (choices("a", more='perRegion="true"'), "", 'is for each region, not .*perRegion="true"'),
            (choices("a", more='perItem="true"'), "", 'is for each image of a list .*perItem="true"'),
            (choices(more='value="$options"'), "", r'has choices that come from each task \(value="\$options"\)'),
            (choices(), "", "has no <Choice> with a value"),
            (choices("fixed", "$other"), "", r'choice whose text comes from each task \(value="\$other"\); give it an'),
            (choices("a", to_name="gone"), "", "is for gone, which no tag is named, not for an <Image>"),
            (choices("a", to_name="t"), TEXT, 'is for <Text name="t">, not for an <Image>'),
            (choices("a", to_name=""), "", "its toName is empty"),
            (choices("a", name=""), "", "has no name"),
            (
                choices("a", to_name="list"),
                '<Image name="list" valueList="$images"/>',
                r'is for <Image name="list">, which shows a list of images \(valueList="\$images"\)',
            ),
            *(
                (
                    choices("a", to_name="url"),
                    image("url", f"{start}$file"),
                    r'has value=".*\$file", where one key is expected',
                )
                for start in ("https://host/", "$folder")
            ),
            (
                f'<Repeater on="$i">{image("i", "$i[{{idx}}]")}{choices("a", to_name="i")}</Repeater>',
                "",
                "is repeated for each item of a task; make a task of each image",
            ),
            *(
                (
                    f'<{kind} name="t" toName="image"><{each} value="a"/></{kind}>',
                    "",
                    f'{kind} name="t"> is not a <Choi',
                )
                for kind, each in (("Taxonomy", "Choice"), ("RectangleLabels", "Label"))
            ),
        ],
    )
    def test_unusable_controls_are_skipped_with_a_reason(self, tag, context, reason):
        """The reason is an error only if no other control is usable."""
        with pytest.raises(ConfigError, match=reason):
            only_control(context, tag)
        assert only_control(context, tag, choices("a", name="good")).from_name == "good"

    def test_naming_an_unusable_control_gives_the_reason(self):
        xml = config(image(), choices("a"), choices("b", name="boxes", more='perRegion="true"'))
        assert len(parse_label_config(xml, "label")) == 1
        with pytest.raises(ConfigError, match=r'named boxes, the labelling config has label; .*perRegion="true"'):
            parse_label_config(xml, "boxes")
