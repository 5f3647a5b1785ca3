"""Paid requests to models: check the payment on the ledger, ask the model server, sign the answer, claim the price."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
from collections import OrderedDict

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_agent.child import LineChild
from talkoo_agent.devices import EnergyMeter
from talkoo_agent.materials import fetch_code
from talkoo_agent.node import Node
from talkoo_agent.trainer_messages import (
    ChildFailed,
    FromModelServer,
    InferInputs,
    Inferred,
    Loaded,
    LoadModel,
    RequestFailed,
    from_model_server,
)
from talkoo_agent.visible import seen_by_cuda
from talkoo_agent.wire import config_of
from talkoo_core.errors import Conflict, Failed, InvalidInput, NotFound, PermissionDenied, TalkooError

log = logging.getLogger(__name__)

ANSWER_DOMAIN = b"talkoo/answer/v1\n"
KEPT_ANSWERS = 256
"""Asked again, the same answer is given again, so a broken connection costs nobody anything."""
MAX_INPUT_BYTES = 8 * 1024 * 1024
MODEL_TIMEOUT_S = 120.0
"""To load a model, or to answer one request."""


class Serving:
    """One model version is kept loaded; requests are answered one at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = asyncio.Lock()
        self._child: LineChild[FromModelServer] | None = None
        self._loaded = ""
        self._answers: OrderedDict[str, agent_pb2.InferResponse] = OrderedDict()

    @property
    def served_models(self) -> list[str]:
        return [self._loaded] if self._loaded else []

    async def infer(self, request: agent_pb2.InferRequest) -> agent_pb2.InferResponse:
        """Raises InvalidInput, NotFound (not paid), PermissionDenied (another's), Conflict, Failed (the model's)."""
        if len(request.input_json) > MAX_INPUT_BYTES:
            raise InvalidInput(f"an input has at most {MAX_INPUT_BYTES >> 20} MiB", code="input_too_large")
        async with self._lock:
            known = self._answers.get(request.request_id)
            paid = await self._node.ledger.get("requests", request.request_id, state_pb2.ModelRequest)
            self._check(request, paid, answered=known is not None)
            if known is not None:
                return known
            inputs = _inputs_of(request.input_json)
            try:
                inferred = await asyncio.wait_for(self._ask(paid, inputs), MODEL_TIMEOUT_S)
            except TimeoutError:
                await self.stop()
                raise Failed(f"{paid.version} did not answer in {MODEL_TIMEOUT_S:.0f} s", code="model_raised") from None
            return await self._answer(paid, inferred)

    async def stop(self) -> None:
        child, self._child, self._loaded = self._child, None, ""
        if child is not None:
            await child.stop()

    def _check(self, request: agent_pb2.InferRequest, paid: state_pb2.ModelRequest, answered: bool) -> None:
        if paid.node_id != self._node.id:
            raise PermissionDenied(f"{paid.id} was paid to {paid.node_id}, not to this node", code="wrong_node")
        if paid.version != request.version:
            raise InvalidInput(f"{paid.id} was paid for {paid.version}, not {request.version}", code="wrong_version")
        if hashlib.sha256(request.input_json).digest() != paid.input_sha256:
            raise InvalidInput(f"the input is not the one that {paid.id} was paid for", code="wrong_input")
        if paid.state != "open" and not answered:
            raise Conflict(f"{paid.id} is {paid.state}; pay for another request", code="request_closed")

    async def _ask(self, paid: state_pb2.ModelRequest, inputs: list[object]) -> Inferred:
        if self._loaded != paid.version or self._child is None:
            await self.stop()
            await self._load(paid.version)
        assert self._child is not None
        await self._child.send(InferInputs(request=paid.id, inputs=inputs))
        answer = await self._hear()
        if isinstance(answer, RequestFailed):
            raise Failed(f"{paid.version} could not answer: {answer.message}", code=answer.kind)
        if not isinstance(answer, Inferred) or answer.request != paid.id:
            await self.stop()
            raise Failed(f"{paid.version} answered another question; ask again", code="internal")
        return answer

    async def _load(self, version: str) -> None:
        model = await _model_of(self._node, version)
        folder = self._node.folder / "models" / version
        await asyncio.to_thread(shutil.rmtree, folder, True)
        await fetch_code(self._node.blobs, model.code_sha256, folder / "code")
        params = folder / "params.safetensors"
        await self._node.blobs.get_to_file(model.params_sha256, params)
        child = LineChild[FromModelServer](
            "talkoo_agent.model_server",
            from_model_server,
            lambda line: log.info("%s: %s", version, line),
            seen_by_cuda(self._node.cards.quietest.uuid),
        )
        self._child = child
        await child.start()
        await child.send(
            LoadModel(
                version=version,
                code_dir=str(folder / "code"),
                module=model.module,
                config=config_of(model.config_json),
                params_path=str(params),
            )
        )
        answer = await self._hear()
        if not isinstance(answer, Loaded):
            await self.stop()
            raise Failed(f"{version} cannot be loaded", code="internal")
        self._loaded = version

    async def _hear(self) -> FromModelServer:
        """The child's next message. Raises Failed when it gave up or ended."""
        assert self._child is not None
        message = await self._child.next_message()
        if message is not None and not isinstance(message, ChildFailed):
            return message
        await self.stop()
        if message is None:
            raise Failed("the model server ended; ask again", code="internal")
        raise Failed(f"the model server gave up: {message.message}", code=message.kind)

    async def _answer(self, paid: state_pb2.ModelRequest, inferred: Inferred) -> agent_pb2.InferResponse:
        output = json.dumps(inferred.outputs, separators=(",", ":")).encode()
        sha256 = hashlib.sha256(output).digest()
        response = agent_pb2.InferResponse(
            output_json=output,
            output_sha256=sha256,
            signature=self._node.key.sign(ANSWER_DOMAIN + paid.id.encode() + b"\n" + sha256),
            node_id=self._node.id,
            public_key=self._node.key.public.raw,
        )
        self._answers[paid.id] = response
        if len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        energy_mj = EnergyMeter(self._node.device).end_mj(inferred.cpu_seconds)
        claim = tx_pb2.CompleteRequest(request_id=paid.id, output_sha256=sha256, energy_mj=energy_mj)
        try:
            await self._node.ledger.submit(claim, wait=False)
        except TalkooError as error:  # the answer is given all the same; the price is then refunded by deadline
            log.warning("%s is answered, but its price cannot be claimed: %s", paid.id, error)
        return response


def _inputs_of(input_json: bytes) -> list[object]:
    try:
        inputs = json.loads(input_json)
    except ValueError as error:
        raise InvalidInput(f"the input is not JSON: {error}", code="bad_input") from error
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("the input must be a JSON list with one entry for each question", code="bad_input")
    return inputs


async def _model_of(node: Node, version: str) -> state_pb2.ModelVersion:
    """Keys of the module are `<model>@<number:06d>`. Raises NotFound."""
    name, _, number = version.rpartition("@")
    if not name or not number.isdigit():
        raise NotFound(f"there is no model version {version!r}; versions look like digits@1", code="no_model")
    return await node.ledger.get("models", f"{name}@{int(number):06d}", state_pb2.ModelVersion)
