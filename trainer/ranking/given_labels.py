"""The labels of a project, by annotators."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from contract.labelconfig import ChoicesControl
from contract.versions.manifest import Manifest
from trainer.labels.annotations import LeftOut, Task, aggregate, confirmed_groups, is_confirmed


@dataclass(frozen=True, slots=True)
class GivenLabels:
    """The labels that annotators chose, and the number of those that they confirmed in bulk."""

    by_people: Mapping[int, frozenset[str]]
    """Labels that a person chose, by task."""
    confirmed: Mapping[tuple[str, int], int]
    """Number of tasks confirmed in bulk, by ranking and label index."""

    @classmethod
    def read(cls, tasks: Iterable[Task], control: str, labels: Collection[str], *, multiple: bool) -> Self:
        """Read annotated tasks from Label Studio."""
        by_people, confirmed = dict[int, frozenset[str]](), Counter[tuple[str, int]]()
        for task in tasks:
            confirmed.update(confirmed_groups(task))
            try:
                chosen = aggregate(task, control, labels, multiple=multiple)
            except LeftOut:
                continue
            if not is_confirmed(task):
                by_people[int(task["id"])] = chosen
        return cls(by_people, confirmed)

    def count_by_class(self, control: ChoicesControl, manifest: Manifest) -> list[int]:
        """Return the number of chosen labels per class of a version, 0 if the labelling config lacks it: (C,)."""
        counts = Counter(label for labels in self.by_people.values() for label in labels)
        return [counts[choice.stored] if choice else 0 for choice in control.find_choices(manifest.labels)]
