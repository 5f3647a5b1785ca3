"""`python -m talkoo_agent.trainer`: a rank that obeys lines on stdin; or `--measure`; or `--count-flops FOLDER`.

Without options: reads one `start`, then `segment` lines, until stdin closes; writes `listening` (rank 0), `ready`,
`step`, `segment_done`, `failed`. Exit status 0 when told to end, else the error family's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from talkoo_agent.lines import Lines
from talkoo_agent.trainer_messages import ChildFailed, RunSegment, Start, Warm, Warmed, line_of, to_trainer
from talkoo_agent.visible import seen_by_cuda
from talkoo_core.errors import InvalidInput, TalkooError
from talkoo_runtime.parent_death import die_with_parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_agent.trainer", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="print this node's speed as one JSON line")
    parser.add_argument("--duty", type=float, default=1.0, help="part of the machine to use, 0.01 to 1 (default 1)")
    parser.add_argument("--count-flops", type=Path, metavar="FOLDER", help="print the FLOPs of one sample of a program")
    parser.add_argument("--module", default="", help="the program's module (with --count-flops)")
    parser.add_argument("--config", default="{}", help="the model's configuration as JSON (with --count-flops)")
    parser.add_argument("--data", type=Path, help="the data file (with --count-flops)")
    options = parser.parse_args()
    try:
        if options.measure:
            return _measure(options.duty)
        if options.count_flops is not None:
            return _count_flops(options.count_flops, options.module, options.config, options.data)
    except TalkooError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201  # a command's answer
        return error.exit_status
    return _train()


def _measure(duty: float) -> int:
    import torch

    from talkoo_agent.processor import processor_name
    from talkoo_agent.trainer.measure import measure

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sys.stdout.buffer.write(line_of(measure(device, processor_name(), duty)))
    return 0


def _count_flops(folder: Path, module: str, config_json: str, data: Path | None) -> int:
    import torch

    from talkoo_math.determinism import make_deterministic
    from talkoo_math.flops import flops_per_sample
    from talkoo_math.program import load_program
    from talkoo_math.step import StateRecipe, make_state

    lines = Lines()  # what the program prints must not mix with the answer
    make_deterministic()
    program = load_program(folder, module)
    if data is None:
        raise InvalidInput("--count-flops needs --data FILE, to take two samples from", code="data_missing")
    config = json.loads(config_json)
    state = make_state(program, StateRecipe(config, "sgd", '{"lr":"0"}', seed=0), torch.device("cpu"))
    lines.send_text(json.dumps({"flops_per_sample": flops_per_sample(state, program.open_data(data, "train"))}))
    return 0


def _train() -> int:
    lines = Lines()
    die_with_parent()
    from talkoo_agent.trainer.failures import failure_of
    from talkoo_agent.trainer.rank import Rank

    rank: Rank | None = None
    try:
        for message in lines.receive(to_trainer):
            if isinstance(message, Warm):
                lines.send(Warmed())
            elif isinstance(message, Start):
                if rank is not None:
                    raise InvalidInput("a trainer is started once", code="bad_message")
                # In time: CUDA reads its environment when it is initialised (`cuInit`). Neither importing torch nor
                # `Warm` does that, and torch.cuda keeps no count of cards before (its `_lazy_init`, `device_count`).
                os.environ.update(seen_by_cuda(message.card))
                rank = Rank(message, lines.send)
                rank.join()
            elif isinstance(message, RunSegment):
                if rank is None:
                    raise InvalidInput("a trainer needs `start` before a segment", code="bad_message")
                lines.send(rank.run(message))
    except Exception as error:
        failure = failure_of(error)
        if failure.code == "internal":
            sys.excepthook(type(error), error, error.__traceback__)
        lines.send(ChildFailed(kind=failure.code, message=failure.message, step=rank.step if rank is not None else -1))
        if rank is not None:
            rank.leave(failed=True)
        sys.stderr.flush()
        os._exit(failure.exit_status)  # threads of a broken group may hang in their own exit
    if rank is not None:
        rank.leave(failed=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
