"""The metrics of several servers as those of one. Knows Prometheus; no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_SINCE = "_created"  # ends the names of samples that are times


def merged(texts: Sequence[bytes]) -> bytes:
    """Add up metrics; of times, take the first."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once."""
        families: dict[str, Metric] = {}
        values: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text.decode()):
                kept = families.setdefault(family.name, copy(family))
                for sample in family.samples:
                    place = (kept.name, sample.name, tuple(sorted(sample.labels.items())))
                    before = values.get(place)
                    first = sample.name.endswith(_SINCE)
                    values[place] = (
                        sample.value if before is None else min(before, sample.value) if first else before + sample.value
                    )
        for kept in families.values():
            kept.samples = []
        for (family_name, name, labels), value in values.items():
            families[family_name].add_sample(name, dict(labels), value)
        yield from families.values()
