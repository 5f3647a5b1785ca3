"""The methods that tell about this node: status, peers, where consensus stands."""

from __future__ import annotations

from importlib.metadata import version

from talkoo_consensus.events import ProposalReceived
from talkoo_consensus.types import BLOCK_PROTOCOL, BlockId, SignedType, Vote

from talkoo_core.signing import PublicKey
from talkoo_ledger.node import Node
from talkoo_ledger.rpc.chain import ChainReader, sync_info
from talkoo_ledger.rpc.documents import Document, hex_of, key_document, time_text
from talkoo_ledger.settings import LedgerSettings

NIL_VOTE = "nil-Vote"
_STEPS = {"propose": 3, "prevote": 4, "precommit": 6}
"""CometBFT's numbers of the steps that ours has, too."""


class StatusMethods:
    """Each method is named as in CometBFT's RPC and returns its result's document."""

    def __init__(self, reader: ChainReader, node: Node, settings: LedgerSettings, key: PublicKey) -> None:
        self._reader = reader
        self._node = node
        self._settings = settings
        self._key = key

    def status(self) -> Document:
        found = self._reader.chain.validators.find(self._key.address)
        power = 0 if found is None else found[1].power
        return {
            "node_info": self._node_info(self._key.address.hex(), self._settings.name, self._settings.listen),
            "sync_info": sync_info(self._reader, self._node.sync.active),
            "validator_info": {
                "address": hex_of(self._key.address),
                "pub_key": key_document(self._key.raw),
                "voting_power": str(power),
            },
        }

    def net_info(self) -> Document:
        """Peers by organization: they are known by their certificates, not by node ids."""
        names = self._node.mesh.connected()
        peers = [
            {
                "node_info": self._node_info("", name, ""),
                "is_outbound": False,
                "connection_status": {},
                "remote_ip": "",
            }
            for name in names
        ]
        return {
            "listening": not self._settings.outbound_only,
            "listeners": [f"Listener(@{self._settings.advertise or self._settings.listen})"],
            "n_peers": str(len(peers)),
            "peers": peers,
        }

    def consensus_state(self) -> Document:
        """The votes of the height under way that this node has seen, as CometBFT prints them in short."""
        driver, validators = self._node.driver, self._reader.chain.validators
        proposed, votes = None, []
        for message in driver.messages():
            if not isinstance(message, ProposalReceived):
                votes.append(message.vote)
            elif message.proposal.round == driver.round:
                proposed = message.proposal.block_id
        locked, valid = driver.locked, driver.valid
        proposer = validators.proposer_of_round(driver.round)
        place = validators.find(proposer.address)
        step = _STEPS.get(driver.step_of_round.name.lower(), 1)
        return {
            "round_state": {
                "height/round/step": f"{driver.height}/{driver.round}/{step}",
                "start_time": time_text(self._reader.chain.last_time_ns),
                "proposal_block_hash": _hash_of(proposed),
                "locked_block_hash": _hash_of(None if locked is None else locked[0]),
                "valid_block_hash": _hash_of(None if valid is None else valid[0]),
                "height_vote_set": [self._vote_set(round_, votes) for round_ in range(driver.round + 1)][-_ROUNDS:],
                "proposer": {"address": hex_of(proposer.address), "index": 0 if place is None else place[0]},
            }
        }

    def _vote_set(self, round_: int, votes: list[Vote]) -> Document:
        document: Document = {"round": round_}
        validators = self._reader.chain.validators
        for name, type_ in (("prevotes", SignedType.PREVOTE), ("precommits", SignedType.PRECOMMIT)):
            of = {vote.validator_address: vote for vote in votes if vote.round == round_ and vote.type is type_}
            seen = [of.get(each.address) for each in validators.validators]
            power = sum(each.power for each in validators.validators if each.address in of)
            total = validators.total_power
            bits = "".join("_" if vote is None else "x" for vote in seen)
            document[name] = [NIL_VOTE if vote is None else _vote_text(vote) for vote in seen]
            document[f"{name}_bit_array"] = f"BA{{{len(seen)}:{bits}}} {power}/{total} = {power / total:.2f}"
        return document

    def _node_info(self, id_: str, moniker: str, listen: str) -> Document:
        address = f"tcp://{self._settings.rpc_listen}" if id_ else ""
        return {
            "protocol_version": {
                "p2p": "0",
                "block": str(BLOCK_PROTOCOL),
                "app": str(self._reader.chain.app_version),
            },
            "id": id_,
            "listen_addr": listen,
            "network": self._reader.chain.chain_id,
            "version": version("talkoo"),
            "channels": "",
            "moniker": moniker,
            "other": {"tx_index": "on", "rpc_address": address},
        }


_ROUNDS = 16
"""Rounds of the height that consensus_state shows, the newest."""


def _hash_of(block_id: BlockId | None) -> str:
    return "" if block_id is None else hex_of(block_id.hash)


def _vote_text(vote: Vote) -> str:
    kind = "PREVOTE(Prevote)" if vote.type is SignedType.PREVOTE else "PRECOMMIT(Precommit)"
    return (
        f"Vote{{{vote.validator_index}:{hex_of(vote.validator_address[:6])} {vote.height}/{vote.round:02d}/"
        f"SIGNED_MSG_TYPE_{kind} {hex_of(vote.block_id.hash[:6]) or '0' * 12} {hex_of(vote.signature[:6])} "
        f"{hex_of(vote.extension[:6]) or '0' * 12} @ {time_text(vote.timestamp_ns)}}}"
    )
