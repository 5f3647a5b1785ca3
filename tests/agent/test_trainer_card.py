"""A trainer sees its own card and no other. STAND-IN: the driver; it has no card and tells what it was let to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from talkoo_agent.trainer_messages import Ready, Start, Warm, Warmed

from talkoo_sim.stand_in_nvml import StandInDriver


def test_a_trainer_that_has_loaded_torch_sees_only_the_card_that_it_is_given(
    driver: StandInDriver, tmp_path: Path, digits: Path, trainer_of: Any, start_of: Callable[..., Start]
) -> None:
    """CUDA reads the variable once: the spare trainer must not have asked it for anything before its task comes."""
    program = tmp_path / "program"
    program.mkdir()
    (program / "asking.py").write_text((digits / "digits.py").read_text() + "\n\ntorch.cuda.is_available()\n")
    trainer = trainer_of(tmp_path / "trainer", driver.environment | {"CUDA_VISIBLE_DEVICES": "0,1"})
    try:
        trainer.send(Warm())
        trainer.next(Warmed)
        assert driver.seen == []
        trainer.send(start_of(tmp_path, 0, [64], 0, code_dir=str(program), module="asking", card="GPU-2"))
        trainer.next(Ready)
        assert driver.seen == [(trainer.process.pid, "GPU-2")]
        assert trainer.close() == 0
    finally:
        trainer.kill()
