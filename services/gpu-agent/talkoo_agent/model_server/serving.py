"""A model version, loaded once, that answers inputs in evaluation mode."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from talkoo_agent.trainer_messages import InferInputs, Inferred, LoadModel
from talkoo_core.errors import Conflict, Failed, InvalidInput
from talkoo_math.checkpoint import load_model_tensors, tensors_from_bytes
from talkoo_math.determinism import make_deterministic
from talkoo_math.program import load_program

MAX_INPUTS = 1024
"""Inputs of one request."""


class ServedModel:
    """Raises the program's typed errors; a request's failure leaves the model as it was."""

    def __init__(self, order: LoadModel) -> None:
        make_deterministic()
        self.version = order.version
        self._program = load_program(Path(order.code_dir), order.module)
        self._model = self._program.build_model(order.config, order.seed)
        load_model_tensors(self._model, tensors_from_bytes(Path(order.params_path).read_bytes(), order.version))
        self._model.eval()

    def answer(self, request: InferInputs) -> Inferred:
        if not 1 <= len(request.inputs) <= MAX_INPUTS:
            raise InvalidInput(f"a request takes 1 to {MAX_INPUTS} inputs, not {len(request.inputs)}", code="bad_input")
        began = time.process_time()
        with torch.no_grad():
            outputs = self._program.predict(self._model, request.inputs)
        _check_json(outputs, self.version)
        return Inferred(request=request.request, outputs=outputs, cpu_seconds=time.process_time() - began)


def serve(model: ServedModel | None, request: InferInputs) -> Inferred:
    if model is None:
        raise Conflict("no model is loaded yet; ask again when it is", code="not_loaded")
    return model.answer(request)


def _check_json(outputs: list[Any], version: str) -> None:
    try:
        msgspec.json.encode(outputs)
    except (TypeError, ValueError) as error:
        raise Failed(f"{version}: predict() returned what JSON cannot carry: {error}", code="bad_output") from error
