"""The API of the Data Manager's tabs, "views"; all functions raise ConfigError if Label Studio does not answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.labelstudio.client import ProjectClient

Filter = Mapping[str, Any]
"""One condition: `filter`, `operator`, `type` and `value`."""

_VIEWS: Final = "/api/dm/views/"
_NO_SETTINGS: Final = ("filters", "ordering", "selectedItems")
"""Keys in a tab's data that are not settings."""


@dataclass(frozen=True, slots=True)
class View:
    """An existing tab."""

    id: int
    title: str
    conjunction: str
    """How filters are combined: "and" or "or"."""
    filters: tuple[Filter, ...]
    settings: Mapping[str, Any]
    """All other data: title, columns, widths, and settings of later versions of Label Studio."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that is available in a project's tabs."""

    id: str
    """Such as `tasks:data.image`."""
    is_image: bool
    is_data: bool
    beside_editor: bool
    """Whether it is shown by default in the narrow list beside an open task."""


def list_views(client: ProjectClient) -> list[View]:
    """Return a project's tabs, from left to right."""

    def parse(view: Mapping[str, Any]) -> View:
        data = view["data"] or {}
        filters = data.get("filters") or {}
        conjunction, items = str(filters.get("conjunction", "and")), tuple(filters.get("items") or ())
        settings = {name: value for name, value in data.items() if name not in _NO_SETTINGS}
        return View(int(view["id"]), str(data.get("title", "")), conjunction, items, settings)

    query = {"project": client.project}
    return client.read(_VIEWS, lambda views: [parse(view) for view in views], resource=_tabs_of(client), query=query)


def list_columns(client: ProjectClient) -> list[Column]:
    """Return the columns that are available in a project's tabs."""

    def parse(reply: Mapping[str, Any]) -> list[Column]:
        return [
            Column(
                id=f"tasks:{'data.' if each.get('parent') == 'data' else ''}{each['id']}",
                is_image=each["type"] == "Image",
                is_data=each.get("parent") == "data",
                beside_editor=bool(each.get("visibility_defaults", {}).get("labeling")),
            )
            for each in reply["columns"]
            if each["target"] == "tasks" and not each.get("children")
        ]

    return client.read("/api/dm/columns/", parse, resource=_tabs_of(client), query={"project": client.project})


def create_view(
    client: ProjectClient, settings: Mapping[str, Any], *, filters: Iterable[Filter] = (), order: str = ""
) -> int:
    """Create a tab at the right end, and return its number."""
    all_of = {"conjunction": "and", "items": list(filters)}
    data = {**settings, "filters": all_of, "ordering": [order] if order else []}
    return int(client.post(_VIEWS, {"project": client.project, "data": data})["id"])


def change_view(client: ProjectClient, view: View, *, filters: Iterable[Filter], settings: Mapping[str, Any]) -> None:
    """Change the filters and the given settings of a tab, if it exists.

    All settings are sent, because Label Studio replaces them, and fails without any.
    """
    data = {**view.settings, **settings, "filters": {"conjunction": view.conjunction, "items": list(filters)}}
    body = {"project": client.project, "data": data}
    client.send("PATCH", f"{_VIEWS}{view.id}/", resource=f"tab {view.id}", body=body, accepted=(404,))


def delete_view(client: ProjectClient, view_id: int) -> None:
    """Delete a tab, if it exists."""
    client.send("DELETE", f"{_VIEWS}{view_id}/", resource=f"tab {view_id}", accepted=(404,))


def order_views(client: ProjectClient, view_ids: Sequence[int]) -> None:
    """Set the order of tabs, from the left."""
    body = {"project": client.project, "ids": list(view_ids)}
    client.send("POST", f"{_VIEWS}order/", resource=_tabs_of(client), body=body)


def _tabs_of(client: ProjectClient) -> str:
    return f"tabs of {client.what}"
