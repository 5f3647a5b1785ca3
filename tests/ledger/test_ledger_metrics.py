"""Real ledger nodes tell Prometheus what they do, and what is said moves with the chain."""

from __future__ import annotations

import pytest
from talkoo_api.ledger.v1 import tx_pb2

from talkoo_core.errors import TalkooError
from talkoo_sim.ledger_chain import address
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.ports import free_ports
from talkoo_sim.scraping import Scraped, scrape


async def test_the_values_move_with_blocks_transactions_and_votes(ledgers: Ledgers) -> None:
    ports = dict(zip(ledgers.names, free_ports(len(ledgers.names)), strict=True))
    for name, port in ports.items():
        ledgers.write_settings(name, metrics_listen=f"127.0.0.1:{port}")
    ledgers.start()
    first, *_, last = ledgers.names
    await ledgers.reach(2)
    before = await scrape(ports[first])
    assert before.value("talkoo_ledger_validators") == len(ledgers.names)
    assert before.value("talkoo_ledger_mempool_limit_transactions") > 0

    alice = ledgers.client(first, "alice")
    with pytest.raises(TalkooError):
        await alice.submit(tx_pb2.Transfer(to="no such address", amount_utlk=1))
    paid = await alice.submit(tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
    await ledgers.reach(paid.height + 1)
    after = await scrape(ports[first])
    status = await alice.status()
    assert before.value("talkoo_ledger_height") < paid.height <= after.value("talkoo_ledger_height") <= status.height
    assert after.value("talkoo_ledger_transactions_total", result="applied") == 1
    assert after.value("talkoo_ledger_events_total", type="transfer") == 1
    assert after.total("talkoo_ledger_refused_transactions_total") == 1
    assert after.value("talkoo_ledger_peers_connected") == len(ledgers.names) - 1
    assert after.value("talkoo_ledger_state_bytes") > 10_000
    assert _blocks(after) > _blocks(before)
    assert after.value("talkoo_ledger_execution_seconds_count") >= after.value("talkoo_ledger_height") - 1
    assert 0 < after.value("talkoo_ledger_block_seconds_sum") / _blocks(after) < 10
    assert after.value("talkoo_certificate_expiry_timestamp_seconds") > after.value(
        "talkoo_ledger_last_block_timestamp_seconds"
    )

    ledgers.stop(last)
    missed = after.value("talkoo_ledger_missed_votes_total", organization=last)

    async def counted() -> bool:
        now = await scrape(ports[first])
        return now.value("talkoo_ledger_missed_votes_total", organization=last) > missed + 2

    await ledgers.eventually(counted, f"{first} counts the votes that {last} does not give")
    assert (await scrape(ports[first])).value("talkoo_ledger_peers_connected") == len(ledgers.names) - 2


def _blocks(scraped: Scraped) -> float:
    return scraped.value("talkoo_ledger_block_seconds_count")
