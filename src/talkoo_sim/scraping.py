"""What a process's metrics page says, as a test or a benchmark reads it."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from talkoo_core.errors import Unavailable

SCRAPE_TIMEOUT_S = 10.0
Series = tuple[str, frozenset[tuple[str, str]]]


class Scraped:
    """All samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.help: Mapping[str, str] = {family.name: family.documentation for family in families}
        self.samples: Mapping[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Of exactly these labels; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Over all series of the name that have these labels."""
        wanted = labels.items()
        return sum(value for (found, own), value in self.samples.items() if found == name and wanted <= set(own))


async def scrape(port: int) -> Scraped:
    """Of a process on this machine. Raises Unavailable while it does not answer."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_TIMEOUT_S) as answer:
            return str(answer.read().decode())

    try:
        return Scraped(await asyncio.to_thread(read))
    except OSError as error:
        raise Unavailable(f"no metrics at port {port}: {error}") from None
