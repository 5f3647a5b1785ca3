"""Questions to peers over their streams, each with one bounded answer in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import InvalidInput, Unavailable
from talkoo_ledger.streams import Stream

MAX_WAITING = 128
"""Questions of ours that wait for their answers, over all peers."""


@dataclass(frozen=True, slots=True)
class _Question:
    kind: str
    then: Callable[[service_pb2.Answer], None]
    otherwise: Callable[[Unavailable], None]
    timer: asyncio.TimerHandle


class Asks:
    """Matches answers to our questions. A peer that is silent past the time allowed is given up for that question."""

    def __init__(self) -> None:
        self._last_id = 0
        self._waiting: dict[tuple[str, int], _Question] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, stream: Stream, question: service_pb2.Ask, timeout_s: float) -> service_pb2.Answer:
        """Raises Unavailable (codes `no_answer`, `connection_lost`)."""
        waiting: asyncio.Future[service_pb2.Answer] = asyncio.get_running_loop().create_future()

        def then(answer: service_pb2.Answer) -> None:
            if not waiting.done():
                waiting.set_result(answer)

        def otherwise(error: Unavailable) -> None:
            if not waiting.done():
                waiting.set_exception(error)

        key = self.ask_later(stream, question, timeout_s, then, otherwise)
        try:
            return await waiting
        finally:
            self._forget(key)

    def ask_later(
        self,
        stream: Stream,
        question: service_pb2.Ask,
        timeout_s: float,
        then: Callable[[service_pb2.Answer], None],
        otherwise: Callable[[Unavailable], None] = lambda _error: None,
    ) -> tuple[str, int]:
        """Ask without waiting: `then` takes the answer and may raise InvalidInput, `otherwise` that there is none."""
        self._last_id += 1
        question.id = self._last_id
        key, kind = (stream.organization, question.id), question.WhichOneof("ask") or ""
        if len(self._waiting) >= MAX_WAITING:
            otherwise(Unavailable(f"{MAX_WAITING} questions to peers wait for answers already", code="no_answer"))
            return key
        timer = asyncio.get_running_loop().call_later(timeout_s, self._given_up, key, timeout_s)
        self._waiting[key] = _Question(kind, then, otherwise, timer)
        stream.send(service_pb2.PeerMessage(ask=question))
        return key

    def answered(self, organization: str, answer: service_pb2.Answer) -> None:
        """Raises InvalidInput for an answer to what was not asked (codes `unasked`, `wrong_answer`) or what `then`
        raises; a late one is let go."""
        question = self._forget((organization, answer.id))
        if question is None:
            if not 0 < answer.id <= self._last_id:
                raise InvalidInput("an answer to a question that nobody asked", code="unasked")
            return
        kind = answer.WhichOneof("answer")
        if kind != question.kind:
            question.otherwise(Unavailable(f"{organization} answered {kind} about {question.kind}", code="no_answer"))
            raise InvalidInput(f"an answer of {kind} to a question about {question.kind}", code="wrong_answer")
        question.then(answer)

    def lost(self, organization: str) -> None:
        """The stream to a peer ended: nobody waits for its answers any longer."""
        for key in [key for key in self._waiting if key[0] == organization]:
            question = self._forget(key)
            assert question is not None
            question.otherwise(Unavailable(f"the stream to {organization} ended", code="connection_lost"))

    def _given_up(self, key: tuple[str, int], timeout_s: float) -> None:
        question = self._forget(key)
        if question is not None:
            what = f"{key[0]} did not answer about {question.kind} in {timeout_s:.0f} s"
            question.otherwise(Unavailable(what, code="no_answer"))

    def _forget(self, key: tuple[str, int]) -> _Question | None:
        question = self._waiting.pop(key, None)
        if question is not None:
            question.timer.cancel()
        return question
