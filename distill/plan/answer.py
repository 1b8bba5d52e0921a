"""The answer of a plan: hours of the student, of everything, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.telemetry.formatting import hours, plural
from distill.cost_model.forecast import Forecast


@dataclass(frozen=True)
class Totals:
    """All runs of a recipe on a cluster, the main one first, and the fine-tunings of its suite."""

    forecasts: Sequence[Forecast]
    trainings: int = 0
    suite_hours: float | None = None
    """None where they are not known, or there are none."""
    suite_note: str = ""
    price: float | None = None
    """Of a device-hour."""
    no_text: str = ""
    """Why the size of the text is not known, where the hours depend on it."""

    @property
    def training_hours(self) -> float:
        return sum(found.hours for found in self.forecasts)

    @property
    def hours(self) -> float:
        return self.training_hours + (self.suite_hours or 0.0)

    @property
    def device_hours(self) -> float:
        suite = (self.suite_hours or 0.0) * self.forecasts[0].cluster.workers
        return sum(found.device_hours for found in self.forecasts) + suite

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.price * self.device_hours

    def sentence(self) -> str:
        """``6.7 h for the student, 35 h with 5 other runs, 36 h with 660 fine-tunings: 280 GPU-hours, 695 at 2.48``."""
        found = self.forecasts[0]
        parts = [f"{hours(found.hours)} for the student"]
        if len(self.forecasts) > 1:
            parts.append(f"{hours(self.training_hours)} with {self._others()}")
        if self.suite_hours is not None:
            parts.append(f"{hours(self.hours)} with the suite's {plural(self.trainings, 'fine-tuning')}")
        spent = f"{amount(self.device_hours)} {found.cluster.unit}-hours"
        money = "" if self.cost is None else f", which cost {amount(self.cost)} at {self.price:g} an hour"
        return f"{', '.join(parts)}: {spent}{money}"

    def doubts(self) -> list[str]:
        """What is wrong with the hours, as sentences."""
        refused = ["But this run will be refused, for the reason below."] if self.forecasts[0].refusals else []
        unknown = f"These hours are for the paper's 4.0 G tokens, not for your text: {self.no_text}."
        return [*refused, *([unknown] if self.no_text else [])]

    def _others(self) -> str:
        names = [found.planned.name for found in self.forecasts[1:]]
        ablations = len([name for name in names if name != "teacher"])
        words = [plural(ablations, "ablation")] if ablations else []
        return " and ".join([*(["its teacher"] if "teacher" in names else []), *words])


def amount(value: float) -> str:
    """Three digits: ``0.42``, ``3.55``, ``280``, ``12,345``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
