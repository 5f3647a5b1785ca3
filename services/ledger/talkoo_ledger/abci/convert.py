"""Between ABCI's messages and the ledger's own words."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from talkoo_api.abci.v1 import abci_pb2

from talkoo_ledger.application import CheckResult, FinalizeRequest, FinalizeResponse
from talkoo_ledger.context import Event
from talkoo_ledger.misbehavior import Misbehavior
from talkoo_ledger.snapshots import Snapshot
from talkoo_ledger.transition import TxResult

KEY_TYPE = "ed25519"
_FAULTS = {
    abci_pb2.MISBEHAVIOR_TYPE_DUPLICATE_VOTE: "duplicate_vote",
    abci_pb2.MISBEHAVIOR_TYPE_LIGHT_CLIENT_ATTACK: "light_client_attack",
}


def time_ns(time: Timestamp) -> int:
    """Exact; `Timestamp.ToNanoseconds` is, too, but refuses Go's year 1."""
    return time.seconds * 10**9 + time.nanos


def finalize_request(request: abci_pb2.FinalizeBlockRequest) -> FinalizeRequest:
    return FinalizeRequest(
        height=request.height,
        hash=request.hash,
        time_ns=time_ns(request.time),
        proposer_address=request.proposer_address,
        txs=tuple(request.txs),
        misbehavior=tuple(_misbehavior(each) for each in request.misbehavior if each.type in _FAULTS),
    )


def _misbehavior(given: abci_pb2.Misbehavior) -> Misbehavior:
    return Misbehavior(
        kind=_FAULTS[given.type],
        validator_address=given.validator.address,
        power=given.validator.power,
        height=given.height,
        time_ns=time_ns(given.time),
        total_power=given.total_voting_power,
    )


def finalize_response(response: FinalizeResponse) -> abci_pb2.FinalizeBlockResponse:
    return abci_pb2.FinalizeBlockResponse(
        events=_events(response.events),
        tx_results=[exec_tx_result(result) for result in response.tx_results],
        validator_updates=[
            abci_pb2.ValidatorUpdate(power=update.power, pub_key_bytes=update.public_key, pub_key_type=KEY_TYPE)
            for update in response.validator_updates
        ],
        app_hash=response.app_hash,
    )


def exec_tx_result(result: TxResult) -> abci_pb2.ExecTxResult:
    """Only `code` of what is set here stands in a header; the rest is for people and indexers."""
    return abci_pb2.ExecTxResult(
        code=result.code,
        codespace=result.family,
        log=result.message,
        info=result.error_code,
        events=_events(result.events),
    )


def check_response(result: CheckResult) -> abci_pb2.CheckTxResponse:
    return abci_pb2.CheckTxResponse(
        code=result.code, codespace=result.family, log=result.message, info=result.error_code
    )


def snapshot_proto(snapshot: Snapshot) -> abci_pb2.Snapshot:
    return abci_pb2.Snapshot(
        height=snapshot.height,
        format=snapshot.format,
        chunks=snapshot.chunks,
        hash=snapshot.hash,
        metadata=snapshot.metadata,
    )


def snapshot_of(proto: abci_pb2.Snapshot) -> Snapshot:
    return Snapshot(proto.height, proto.format, proto.chunks, proto.hash, proto.metadata)


def _events(events: Iterable[Event]) -> list[abci_pb2.Event]:
    """The subject, where there is one, is an attribute of that name."""
    return [
        abci_pb2.Event(
            type=event.type,
            attributes=[
                abci_pb2.EventAttribute(key=key, value=value, index=True)
                for key, value in ((("subject", event.subject),) if event.subject else ()) + event.attributes
            ],
        )
        for event in events
    ]
