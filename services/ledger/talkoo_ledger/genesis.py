"""The genesis file: who the members are, who holds what, and the parameters. Decides everything that follows."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from talkoo_core.amounts import PPM, UTLK_PER_TLK
from talkoo_core.errors import InvalidInput
from talkoo_core.ids import address_of_key, check_name, parse_address
from talkoo_core.signing import PUBLIC_KEY_BYTES
from talkoo_ledger.accusations import begin_validators
from talkoo_ledger.records import Account, Chain, Organization, Params, Supply
from talkoo_ledger.state import State
from talkoo_ledger.transfers import TREASURY
from talkoo_ledger.wire import params_from_mapping

MAX_SUPPLY_UTLK = 750 * 10**15
"""Genesis and all emission together: power (below 1.5 * stake) then fits CometBFT's limit of (2^63 - 1) / 8."""
CHAIN_ID_MAX_BYTES = 50


class GenesisOrganization(Struct, frozen=True, forbid_unknown_fields=True):
    """A founding member; keys are 32-byte Ed25519 public keys in hex."""

    name: str
    owner_key: str
    consensus_key: str
    scheduler_key: str
    validator_key: str
    stake_utlk: int
    node_keys: list[str] = []


class GenesisAccount(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens that exist from the beginning."""

    address: str
    balance_utlk: int
    label: str = ""


class Genesis(Struct, frozen=True, forbid_unknown_fields=True):
    """The file, field by field."""

    chain_id: str
    genesis_time_ns: int
    params: dict[str, int]
    organizations: list[GenesisOrganization]
    accounts: list[GenesisAccount] = []
    initial_height: int = 1

    def canonical_json(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")

    def sha256(self) -> bytes:
        """What two nodes compare to know that they are on the same chain."""
        return hashlib.sha256(self.canonical_json()).digest()


def default_params() -> dict[str, int]:
    """Parameters of the embedded federation. docs/ledger.md says why each is what it is."""
    return {
        "min_fee_utlk": 100,
        "min_node_stake_utlk": 10 * UTLK_PER_TLK,
        "slash_ppm": 500_000,
        "finder_ppm": 200_000,
        "audit_floor_ppm": 100_000,
        "probation_segments": 2,
        "validation_ppm": 100_000,
        "audit_deadline_blocks": 120,
        "request_deadline_blocks": 60,
        "jail_blocks": 600,
        "unbonding_blocks": 600,
        "epoch_blocks": 20,
        "emission_per_epoch_utlk": 4 * UTLK_PER_TLK,
        "emission_halving_epochs": 100_000,
        "emission_compute_ppm": 500_000,
        "emission_validation_ppm": 200_000,
        "emission_consensus_ppm": 200_000,
        "credit_decay_ppm": 50_000,
        "credit_half_gflop": 1_000,
        "stall_blocks": 60,
        "max_block_txs": 1_000,
        "max_block_bytes": 1 << 20,
        "max_tx_bytes": 64 << 10,
        "max_audit_extensions": 3,
        "reveal_grace_blocks": 2,
    }


def parse_genesis(data: bytes) -> Genesis:
    """Read a genesis file. Raises InvalidInput (code `bad_genesis`) and says which field is wrong."""
    try:
        return msgspec.json.decode(data, type=Genesis)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(str(error)) from None


def check_genesis(genesis: Genesis) -> Params:
    """Check everything a state is made of. Raises InvalidInput (code `bad_genesis`). Returns the parameters."""
    if not 0 < len(genesis.chain_id.encode()) <= CHAIN_ID_MAX_BYTES:
        raise _wrong(f"chain_id takes 1 to {CHAIN_ID_MAX_BYTES} bytes")
    if genesis.initial_height != 1:
        raise _wrong("initial_height is 1: a chain that goes on from another is not supported")
    params = _checked_params(genesis.params)
    names = [organization.name for organization in genesis.organizations]
    keys = [
        key
        for each in genesis.organizations
        for key in (each.owner_key, each.consensus_key, each.scheduler_key, each.validator_key, *each.node_keys)
    ]
    for name in names:
        check_name(name, "organization")
    for key in keys:
        _key(key)
    if not names or len(set(names)) != len(names):
        raise _wrong("there must be organizations, each with its own name")
    if len(set(keys)) != len(keys):
        raise _wrong("a key stands twice; every role of every organization has its own")
    addresses = [account.address for account in genesis.accounts]
    for address in addresses:
        parse_address(address)
    if len(set(addresses)) != len(addresses):
        raise _wrong("an account stands twice")
    _check_supply(genesis, params)
    return params


def genesis_state(genesis: Genesis) -> State:
    """The state before the first block."""
    params = check_genesis(genesis)
    state = State()
    state.parameters.put("params", params)
    state.chains.put("chain", Chain(chain_id=genesis.chain_id))
    for organization in genesis.organizations:
        _found(state, organization)
    state.accounts.put(TREASURY, Account(TREASURY, label="treasury"))
    for given in genesis.accounts:
        known = state.accounts.get(given.address)
        label = given.label or (known.label if known else "")
        state.accounts.put(given.address, Account(given.address, given.balance_utlk, 0, label))
    liquid = sum(account.balance_utlk for account in genesis.accounts)
    staked = sum(organization.stake_utlk for organization in genesis.organizations)
    state.supplies.put("supply", Supply(genesis_utlk=liquid + staked, accounts_utlk=liquid, stake_utlk=staked))
    begin_validators(state)
    return state


def _found(state: State, given: GenesisOrganization) -> None:
    owner_key = _key(given.owner_key)
    roles = {
        given.name: address_of_key(owner_key),
        f"{given.name}-scheduler": address_of_key(_key(given.scheduler_key)),
        f"{given.name}-validator": address_of_key(_key(given.validator_key)),
    }
    for label, address in roles.items():
        state.accounts.put(address, Account(address, label=label))
    owner, scheduler, validator = roles.values()
    state.organizations.put(
        given.name,
        Organization(
            name=given.name,
            owner=owner,
            validator_key=_key(given.consensus_key),
            scheduler=scheduler,
            validator=validator,
            stake_utlk=given.stake_utlk,
            power=given.stake_utlk,
            owner_key=owner_key,
            listed_nodes=tuple(address_of_key(_key(key)) for key in given.node_keys),
        ),
    )


def _checked_params(values: dict[str, int]) -> Params:
    missing = sorted(set(Params.__struct_fields__) - set(values))
    unknown = sorted(set(values) - set(Params.__struct_fields__))
    if missing or unknown:
        raise _wrong(f"parameters missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    params = params_from_mapping(values)
    for name, value in values.items():
        if value < 0 or (name.endswith("_ppm") and value > PPM):
            raise _wrong(f"{name} is {value}; rates are 0 to {PPM} millionths")
    positive = (
        "slash_ppm",
        "audit_floor_ppm",
        "audit_deadline_blocks",
        "request_deadline_blocks",
        "epoch_blocks",
        "emission_halving_epochs",
        "credit_half_gflop",
        "stall_blocks",
        "max_block_txs",
        "max_block_bytes",
        "max_tx_bytes",
    )
    for name in positive:
        if values[name] == 0:
            raise _wrong(f"{name} must be more than 0")
    if params.emission_compute_ppm + params.emission_validation_ppm + params.emission_consensus_ppm > PPM:
        raise _wrong("the shares of the emission are more than the whole")
    longest_audit = params.audit_deadline_blocks * (1 + params.max_audit_extensions) + params.reveal_grace_blocks
    if params.unbonding_blocks < longest_audit:
        raise _wrong(f"unbonding_blocks must be at least {longest_audit}, the longest an audit may take")
    if params.max_tx_bytes > params.max_block_bytes:
        raise _wrong("max_tx_bytes is more than max_block_bytes")
    return params


def _check_supply(genesis: Genesis, params: Params) -> None:
    amounts = [account.balance_utlk for account in genesis.accounts]
    stakes = [organization.stake_utlk for organization in genesis.organizations]
    if min([*amounts, *stakes]) < 0 or sum(stakes) == 0:
        raise _wrong("amounts are not negative, and some organization has stake")
    emission = 2 * params.emission_per_epoch_utlk * params.emission_halving_epochs
    if sum(amounts) + sum(stakes) + emission > MAX_SUPPLY_UTLK:
        raise _wrong(f"all tokens, with those still to be emitted, are more than {MAX_SUPPLY_UTLK} utlk")


def _key(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != PUBLIC_KEY_BYTES or text != raw.hex():
        raise _wrong(f"{text!r} is not a public key of {PUBLIC_KEY_BYTES} bytes in lower-case hex")
    return raw


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(f"the genesis file is wrong: {message}", code="bad_genesis")
