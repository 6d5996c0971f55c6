"""Having a project's tabs be what they should: made, changed as far as they are ours, and taken away.

Ours are those that we remember by number and that still bear a title of ours: one that was renamed is its owner's, and
one that was deleted stays so. Of ours only title and filters are ours, and whatever else people filter by, show or set
stays. What is about to be done is written down first, so that it may be cut short anywhere and begun again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from contract.versions.repository import Repository
from trainer.labelstudio.client import ProjectClient
from trainer.tabs import views
from trainer.tabs.record import Kept, TabRecord, forget_record, save_record
from trainer.tabs.tabs import Tab
from trainer.tabs.views import Column, Filter, View

_REMEMBERED: Final = 5
"""Filters and titles that a tab of ours had: what a browser puts back that has been open since."""
_NUMBER: Final = "tasks:id"
_WIDTHS: Final = {"tasks:predictions_results": 470, "tasks:annotations_results": 220}
"""Of the columns with text in them, in pixels: both and an image beside them are to be seen where 1,200 are wide."""
_GRID_COLUMNS: Final = 6
_TICKED: Final = {"selected": {"all": True, "list": []}}
"""As the Data Manager reads it, which forgets it when people change a tab."""
_EVERYTHING: Final = {"title": "Default"}
"""What Label Studio makes itself where there is no tab, with the columns that it shows by default."""


def keep_tabs(client: ProjectClient, repository: Repository, *, record: TabRecord, wanted: Sequence[Tab]) -> list[str]:
    """Have a project show the tabs that are wanted, from left to right, and none of ours beside them: their titles.

    What is remembered of the project is saved, too. Raises ConfigError if that cannot be, or Label Studio refuses.
    """
    there = views.list_views(client)
    shall = {tab.key: tab for tab in wanted}
    tabs = _recognise(record.tabs, there)
    shown = {key: view for key, kept in tabs.items() for view in there if view.id == kept.id}
    gone = {key: replace(tabs[key], leaving=True) for key in shown if key not in shall}
    new = {key: Kept(None, tab.title, (), (tab.filters,)) for key, tab in shall.items() if key not in tabs}
    changed = {key: _written(tabs[key], shall[key]) for key in shown if key in shall}
    tabs = {**tabs, **gone, **new, **changed}
    save_record(repository, client.project, replace(record, tabs=tabs))
    for key in gone:
        views.delete_view(client, shown[key].id)
    for key in changed:
        view, tab = shown[key], shall[key]
        filters = _follow(view.filters, record.tabs[key].written, tab.filters)
        if filters is not None or view.title != tab.title:
            settings = {"title": tab.title, **(_TICKED if tab.ticked else {})}
            there_now = list(view.filters) if filters is None else filters
            views.change_view(client, view, filters=there_now, settings=settings)
    made = _make(client, [shall[key] for key in new]) if new else {}
    if made and not there:
        everything = views.create_view(client, _EVERYTHING)
        views.order_views(client, [*made.values(), everything])
    if gone or made:
        tabs = {key: replace(kept, id=made.get(key, kept.id)) for key, kept in tabs.items() if key not in gone}
        save_record(repository, client.project, replace(record, tabs=tabs))
    return [tab.title for tab in shall.values()]


def remove_tabs(client: ProjectClient, repository: Repository, record: TabRecord) -> int:
    """Remove the tabs that are ours and forget about the project; return how many there were."""
    there = views.list_views(client) if record.tabs else []
    numbers = {kept.id for kept in _recognise(record.tabs, there).values()}
    ours = [view.id for view in there if view.id in numbers]
    for view_id in ours:
        views.delete_view(client, view_id)
    forget_record(repository, client.project)
    return len(ours)


def _recognise(tabs: Mapping[str, Kept], there: Sequence[View]) -> dict[str, Kept]:
    """Return those that are ours still, deleted ones among them, with the numbers that they have."""
    by_number = {view.id: view for view in there}
    found = {}
    for key, kept in tabs.items():
        number = kept.id
        if number is None:  # its maker may have been cut short after it was made
            same = [view.id for view in there if view.title == kept.title and view.filters in kept.written]
            number = same[-1] if same else None
        view = by_number.get(number) if number is not None else None
        if view is not None and view.title in (kept.title, *kept.former):
            found[key] = replace(kept, id=number, leaving=False)
        elif number is not None and view is None and not kept.leaving:
            found[key] = kept
    return found


def _written(kept: Kept, tab: Tab) -> Kept:
    """What is remembered once a tab of ours is made what it is to be."""
    filters = tuple(each for each in kept.written if each != tab.filters)
    titles = tuple(each for each in (*kept.former, kept.title) if each != tab.title)
    written = (*filters, tab.filters)[-_REMEMBERED:]
    return replace(kept, title=tab.title, former=titles[-_REMEMBERED:], written=written)


def _follow(
    there: Sequence[Filter], written: Sequence[Sequence[Filter]], wanted: Sequence[Filter]
) -> list[Filter] | None:
    """Return the filters that a tab is to have, None if they stay: what people have made of them does.

    Those `written` are what it was given so far, the last ones last.
    """
    ours = [item for items in written for item in items]
    outdated = any(item in ours and item not in wanted for item in there)
    if not outdated and list(written[-1]) == list(wanted):
        return None
    filters = [*wanted, *(item for item in there if item not in ours and item not in wanted)]
    return filters if filters != list(there) else None


def _make(client: ProjectClient, tabs: Iterable[Tab]) -> dict[str, int]:
    """Make tabs, and return their numbers."""
    columns = views.list_columns(client)
    return {
        tab.key: views.create_view(client, _settings(tab, columns), filters=tab.filters, order=tab.ordering)
        for tab in tabs
    }


def _settings(tab: Tab, columns: Sequence[Column]) -> dict[str, Any]:
    """What a tab looks like at first."""
    images = [column.id for column in columns if column.is_image]
    grid = tab.grid and len(images) == 1
    data = images if grid else [column.id for column in columns if column.is_data]
    shown = {_NUMBER, *tab.columns, *data}
    return {
        "title": tab.title,
        "type": "grid" if grid else "list",
        "target": "tasks",
        "hiddenColumns": {
            "explore": [column.id for column in columns if column.id not in shown],
            "labeling": [column.id for column in columns if not column.beside_editor],
        },
        "columnsWidth": {column: width for column, width in _WIDTHS.items() if column in shown},
        "gridWidth": _GRID_COLUMNS,
        **(_TICKED if tab.ticked else {}),
    }
