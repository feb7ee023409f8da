"""This module turns figures into medians, a table with ratios to ext4, and JSON."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from contrib.bench.tasks import State

MORE_IS_BETTER = {"MB/s"}
# The columns of the table: place, state, and whose figure a ratio is taken to.
COLUMNS = (
    ("mount", State.COLD, State.COLD),
    ("mount", State.WARM, State.COLD),
    ("mount", State.HOT, State.HOT),
    ("ext4", State.COLD, None),
    ("ext4", State.HOT, None),
)


@dataclass(frozen=True, slots=True, order=True)
class Figure:
    """What was measured: which figure of which task, and its unit."""

    task: str
    name: str
    unit: str

    def __str__(self) -> str:
        return " ".join(word for word in (self.task, self.name if self.name != self.unit else "") if word)


@dataclass(slots=True)
class Results:
    """All samples of a run of the benchmark, and what else it found out."""

    samples: dict[tuple[Figure, str, State], list[float]] = field(default_factory=lambda: defaultdict(list))
    extras: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    about: dict[str, Any] = field(default_factory=dict)

    def add(self, figure: Figure, place: str, state: State, value: float) -> None:
        self.samples[figure, place, state].append(value)

    def median(self, figure: Figure, place: str, state: State) -> float | None:
        values = self.samples.get((figure, place, state))
        return statistics.median(values) if values else None

    def figures(self) -> Iterable[Figure]:
        """Return every figure, in the order in which it was first measured."""
        return dict.fromkeys(figure for figure, _, _ in self.samples)


def table(results: Results) -> Table:
    """Return all medians, and behind those of the mount how many times ext4's that is, in the same state."""
    shown = Table(
        title="medians; ×: of ext4, cold beside cold, warm beside cold, hot beside hot", title_style=""
    )
    shown.add_column("")
    for place, state, _ in COLUMNS:
        shown.add_column(f"{place} {state.value}", justify="right")
    for figure in results.figures():
        shown.add_row(str(figure), *(cell(results, figure, *column) for column in COLUMNS))
    return shown


def cell(results: Results, figure: Figure, place: str, state: State, beside: State | None) -> str:
    value = results.median(figure, place, state)
    if value is None:
        return "–"
    reference = results.median(figure, "ext4", beside) if beside else None
    ratio = f"  × {value / reference:.3g}" if reference else ""
    return f"{value:.3g} {figure.unit}{ratio}" if value < 1000 else f"{value:.0f} {figure.unit}{ratio}"


def extras(results: Results) -> Table:
    """Return what was measured of the daemon and the publication."""
    shown = Table(title="node and publisher, medians", title_style="", show_header=False)
    shown.add_column("")
    shown.add_column("", justify="right")
    for name, values in results.extras.items():
        shown.add_row(name, f"{statistics.median(values):.3g}")
    return shown


def as_json(results: Results) -> dict[str, Any]:
    """Return everything, samples included, with stable keys."""
    return {
        "about": results.about,
        "figures": [
            {
                "figure": str(figure),
                "unit": figure.unit,
                "more_is_better": figure.unit in MORE_IS_BETTER,
                "place": place,
                "state": state.value,
                "median": statistics.median(values),
                "samples": values,
            }
            for (figure, place, state), values in results.samples.items()
        ],
        "extras": {
            name: {"median": statistics.median(values), "samples": values}
            for name, values in results.extras.items()
        },
    }
