"""`python -m talkoo_agent.model_server`: reads `load` and `infer` lines, writes `loaded`, `inferred`, `request_failed`.

A model that cannot be loaded ends the process (`failed`); a request that fails does not. Ends when stdin closes.
"""

from __future__ import annotations

import sys

from talkoo_agent.lines import Lines
from talkoo_agent.trainer_messages import (
    ChildFailed,
    InferInputs,
    Loaded,
    LoadModel,
    RequestFailed,
    to_model_server,
)
from talkoo_core.errors import TalkooError
from talkoo_runtime.parent_death import die_with_parent


def main() -> int:
    lines = Lines()
    die_with_parent()
    from talkoo_agent.model_server.serving import ServedModel, serve
    from talkoo_agent.trainer.failures import failure_of

    model: ServedModel | None = None
    try:
        for message in lines.receive(to_model_server):
            if isinstance(message, LoadModel):
                model = ServedModel(message)
                lines.send(Loaded(version=message.version))
            elif isinstance(message, InferInputs):
                try:
                    lines.send(serve(model, message))
                except TalkooError as error:
                    failed = RequestFailed(request=message.request, kind=error.code, message=error.message)
                    lines.send(failed)
    except Exception as error:
        failure = failure_of(error)
        if failure.code == "internal":
            sys.excepthook(type(error), error, error.__traceback__)
        lines.send(ChildFailed(kind=failure.code, message=failure.message))
        return failure.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
