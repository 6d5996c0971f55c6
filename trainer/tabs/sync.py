"""Synchronisation of a project's tabs: creates, updates and removes our tabs.

A tab is ours if its number is recorded and it still has one of our titles; a renamed tab belongs to the user, and a
deleted one is not created again. Only title and filters of our tabs are updated; users' filters and settings stay.
Intended changes are recorded first, so that an interrupted synchronisation can be repeated.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from contract.versions.repository import Repository
from trainer.labelstudio.client import ProjectClient
from trainer.tabs import views
from trainer.tabs.record import OwnTab, TabRecord, forget_record, save_record
from trainer.tabs.tabs import Tab
from trainer.tabs.views import Column, Filter, View

_MAX_RECORDED: Final = 5
"""Number of earlier filters and titles recorded per tab: a browser tab open since then restores them."""
_NUMBER: Final = "tasks:id"
_WIDTHS: Final = {"tasks:predictions_results": 470, "tasks:annotations_results": 220}
"""Widths of text columns in pixels: they and an image fit into a window of 1,200 pixels."""
_GRID_COLUMNS: Final = 6
_ALL_SELECTED: Final = {"selected": {"all": True, "list": []}}
"""In the Data Manager's format; it is reset when users change the tab."""
_DEFAULT_TAB: Final = {"title": "Default"}
"""The tab that Label Studio itself creates if there is none, with its default columns."""


def sync_tabs(
    client: ProjectClient, repository: Repository, *, record: TabRecord, definitions: Sequence[Tab]
) -> list[str]:
    """Update our tabs to their definitions, from left to right, save the record, and return the titles.

    Raises ConfigError if the record cannot be saved, or Label Studio refuses.
    """
    existing = views.list_views(client)
    by_key = {tab.key: tab for tab in definitions}
    tabs = _find_own(record.tabs, existing)
    present = {key: view for key, own in tabs.items() for view in existing if view.id == own.id}
    removed = {key: replace(tabs[key], leaving=True) for key in present if key not in by_key}
    new = {key: OwnTab(None, tab.title, (), (tab.filters,)) for key, tab in by_key.items() if key not in tabs}
    changed = {key: _updated_record(tabs[key], by_key[key]) for key in present if key in by_key}
    tabs = {**tabs, **removed, **new, **changed}
    save_record(repository, client.project, replace(record, tabs=tabs))
    for key in removed:
        views.delete_view(client, present[key].id)
    for key in changed:
        view, tab = present[key], by_key[key]
        filters = _merge_filters(view.filters, record.tabs[key].written, tab.filters)
        if filters is not None or view.title != tab.title:
            settings = {"title": tab.title, **(_ALL_SELECTED if tab.all_selected else {})}
            filters_now = list(view.filters) if filters is None else filters
            views.change_view(client, view, filters=filters_now, settings=settings)
    created = _create(client, [by_key[key] for key in new]) if new else {}
    if created and not existing:
        default = views.create_view(client, _DEFAULT_TAB)
        views.order_views(client, [*created.values(), default])
    if removed or created:
        tabs = {key: replace(own, id=created.get(key, own.id)) for key, own in tabs.items() if key not in removed}
        save_record(repository, client.project, replace(record, tabs=tabs))
    return [tab.title for tab in by_key.values()]


def remove_tabs(client: ProjectClient, repository: Repository, record: TabRecord) -> int:
    """Remove our tabs and their record, and return the number of removed tabs.

    Raises ConfigError if Label Studio does not answer, OSError if the record cannot be removed.
    """
    existing = views.list_views(client) if record.tabs else []
    numbers = {own.id for own in _find_own(record.tabs, existing).values()}
    ours = [view.id for view in existing if view.id in numbers]
    for view_id in ours:
        views.delete_view(client, view_id)
    forget_record(repository, client.project)
    return len(ours)


def _find_own(tabs: Mapping[str, OwnTab], existing: Sequence[View]) -> dict[str, OwnTab]:
    """Return the tabs that are still ours, including deleted ones, with their numbers."""
    by_number = {view.id: view for view in existing}
    own_tabs = {}
    for key, own in tabs.items():
        number = own.id
        if number is None:  # the process may have been killed just after creating it
            same = [view.id for view in existing if view.title == own.title and view.filters in own.written]
            number = same[-1] if same else None
        view = by_number.get(number) if number is not None else None
        if view is not None and view.title in (own.title, *own.former):
            own_tabs[key] = replace(own, id=number, leaving=False)
        elif number is not None and view is None and not own.leaving:
            own_tabs[key] = own
    return own_tabs


def _updated_record(own: OwnTab, tab: Tab) -> OwnTab:
    """Return the record of one of our tabs after its update."""
    filters = tuple(each for each in own.written if each != tab.filters)
    titles = tuple(each for each in (*own.former, own.title) if each != tab.title)
    written = (*filters, tab.filters)[-_MAX_RECORDED:]
    return replace(own, title=tab.title, former=titles[-_MAX_RECORDED:], written=written)


def _merge_filters(
    existing: Sequence[Filter], written: Sequence[Sequence[Filter]], target: Sequence[Filter]
) -> list[Filter] | None:
    """Return a tab's new filters, including those added by users, or None if they do not change.

    `written` are the filters that we have set so far, oldest first.
    """
    ours = [item for items in written for item in items]
    outdated = any(item in ours and item not in target for item in existing)
    if not outdated and list(written[-1]) == list(target):
        return None
    filters = [*target, *(item for item in existing if item not in ours and item not in target)]
    return filters if filters != list(existing) else None


def _create(client: ProjectClient, tabs: Iterable[Tab]) -> dict[str, int]:
    """Create tabs, and return their numbers."""
    columns = views.list_columns(client)
    return {
        tab.key: views.create_view(client, _settings(tab, columns), filters=tab.filters, order=tab.ordering)
        for tab in tabs
    }


def _settings(tab: Tab, columns: Sequence[Column]) -> dict[str, Any]:
    """Return the settings of a new tab."""
    images = [column.id for column in columns if column.is_image]
    grid = tab.grid and len(images) == 1
    data = images if grid else [column.id for column in columns if column.is_data]
    visible = {_NUMBER, *tab.columns, *data}
    return {
        "title": tab.title,
        "type": "grid" if grid else "list",
        "target": "tasks",
        "hiddenColumns": {
            "explore": [column.id for column in columns if column.id not in visible],
            "labeling": [column.id for column in columns if not column.beside_editor],
        },
        "columnsWidth": {column: width for column, width in _WIDTHS.items() if column in visible},
        "gridWidth": _GRID_COLUMNS,
        **(_ALL_SELECTED if tab.all_selected else {}),
    }
