"""What a block tells subscribers, in CometBFT's order and words: NewBlock, NewBlockHeader, NewBlockEvents, Tx, …"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.validators import Validator

from talkoo_ledger.event_index import TX_HASH, TX_HEIGHT, block_events, event_pairs
from talkoo_ledger.rpc.chain import ReadBlock
from talkoo_ledger.rpc.documents import (
    Document,
    block_document,
    block_id_document,
    events_document,
    header_document,
    hex_of,
    result_document,
    update_document,
    validator_document,
    without_zeros,
)
from talkoo_ledger.store import StoredBlock

EVENT_TYPE = "tm.event"

Values = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Happening:
    """`values`: what a query is held against; `data` as it is sent."""

    values: Values
    data: Document


def happenings_of(stored: StoredBlock, read: ReadBlock, updates: Sequence[Validator]) -> Iterator[Happening]:
    """Everything that block told, in order."""
    own = block_events(stored.events.events, stored.results)
    yield _happening("NewBlock", own, _new_block(stored, read, own, updates))
    yield _happening("NewBlockHeader", (), {"header": header_document(read.block.header)})
    about = {"height": str(stored.height), "events": events_document(own) or None}
    yield _happening("NewBlockEvents", own, about | {"num_txs": str(len(stored.results))})
    for result, tx in zip(stored.results, read.block.data.txs, strict=True):
        of_tx = {TX_HASH: [hex_of(result.hash)], TX_HEIGHT: [str(stored.height)]}
        yield _happening("Tx", result.events, {"TxResult": _tx_result(result, tx)}, of_tx)
    if updates:
        changed = {"validator_updates": [validator_document(each) for each in updates]}
        yield _happening("ValidatorSetUpdates", (), changed)


def _happening(
    kind: str, events: Iterable[service_pb2.Event], value: Document, more: Values | None = None
) -> Happening:
    values: Values = {EVENT_TYPE: [kind], **(more or {})}
    for event in events:
        for key, text in event_pairs(event):
            values.setdefault(f"{event.type}.{key}", []).append(text)
    return Happening(values, {"type": f"tendermint/event/{kind}", "value": value})


def _new_block(
    stored: StoredBlock, read: ReadBlock, own: Sequence[service_pb2.Event], updates: Sequence[Validator]
) -> Document:
    result: Document = {
        "events": events_document(own),
        "tx_results": [result_document(each) for each in stored.results],
        "validator_updates": [update_document(each) for each in updates],
        "app_hash": base64.b64encode(stored.events.app_hash).decode(),
    }
    for name in ("events", "tx_results"):  # Go leaves these out where they are empty
        if not result[name]:
            del result[name]
    return {
        "block": block_document(read.block),
        "block_id": block_id_document(read.block_id),
        "result_finalize_block": result,
    }


def _tx_result(result: service_pb2.TxResult, tx: bytes) -> Document:
    document: Document = {
        "height": str(result.height),
        "index": result.index,
        "tx": base64.b64encode(tx).decode(),
        "result": without_zeros(result_document(result)),
    }
    if not result.index:
        del document["index"]
    return document
