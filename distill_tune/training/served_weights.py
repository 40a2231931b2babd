"""A student that vLLM answers for, all its weights sent there by vLLM's own weight transfer, over NCCL.

The trainer's side is vLLM's (docs.vllm.ai, weight transfer): it must be installed here, too.
"""

import functools
import importlib.util
import json
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from distill_tune.errors import UserError, one_line
from distill_tune.generation.server import ServerDecoder
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.serve.connection import Refused, Server
from distill_tune.serve.engine import asked_for_json, read_from
from distill_tune.training.distributed import from_main_process, is_main_process
from distill_tune.training.export import merged_weights

_WORLD_SIZE = "/get_world_size"
_NOT_THERE = 404


class ServedWeights:
    """Keeps what vLLM answers with the student's own, by its whole weights, adapters merged.

    Args:
        decoder: whose one server was started with ``VLLM_SERVER_DEV_MODE=1`` and ``--weight-transfer-config
            '{"backend": "nccl"}'``, on GPUs of its own.
        checkpoint: that the student started from.
        dtype: of the weights on the way.
        device: from which they are sent.
        address: of this machine for the server's workers; default its name.

    Raises:
        UserError: vLLM is not installed.
    """

    def __init__(
        self,
        decoder: ServerDecoder,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        address: str | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError("sending weights to vLLM takes vLLM's own side of it: pip install vllm, or train by LoRA")
        self._decoder, self._checkpoint, self._dtype, self._device = decoder, checkpoint, dtype, device
        self._address = address or socket.gethostname()
        self._weights: dict[str, torch.Tensor] = {}
        self._client: _Client | None = None
        self._sender: Any = None

    def send(self, student: nn.Module, step: int) -> None:
        """Have answers come of the student as it is now. Every rank calls it.

        Args:
            step: to be told.

        Raises:
            UserError: the server does not take them.
        """
        version = from_main_process(f"step-{step}-{uuid.uuid4().hex[:12]}")
        self._weights = merged_weights(student, self._checkpoint, self._dtype)
        refused = ""
        if is_main_process():
            try:
                self._transfer(version)
            except Exception as error:  # of vLLM and NCCL, too: all ranks are to hear of it
                refused = one_line(error)
                if isinstance(error, Refused) and error.status == _NOT_THERE:
                    refused += "; start vLLM with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config"
        self._weights = {}
        if refused := from_main_process(refused):
            raise UserError(f"url={self._decoder.engines[0].server.url}: sending the student's weights: {refused}")
        self._decoder.weight_version = version

    def _transfer(self, version: str) -> None:
        if len(self._decoder.engines) > 1:
            raise UserError("weights are sent to one server: name one url")
        server = self._decoder.engines[0].server
        # Nothing is under way here; what was computed of prompts by the weights before is forgotten.
        server.ask("/pause", b"", {"mode": "wait"})
        try:
            if self._sender is None:
                self._client = _Client(server)
                self._sender = self._connected(server, self._client)
            assert self._client is not None
            self._client.version = version
            self._sender.send_weights()
        finally:
            server.ask("/resume", b"")  # or all that is asked later is refused as busy

    def _connected(self, server: Server, client: "_Client") -> Any:
        """vLLM's sender, which meets the server's workers at a port of this machine."""
        from vllm.distributed.weight_transfer import (  # type: ignore[import-not-found]
            ParamMeta,
            WeightSource,
            WeightTransferTrainerFactory,
        )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # type: ignore[import-not-found]

        sent = self

        class Weights(WeightSource):  # type: ignore[misc]
            @functools.cached_property
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in sent._weights.items()]

            def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
                for name, value in sent._weights.items():
                    yield name, value.to(sent._device)

        found = asked_for_json(server, _WORLD_SIZE)
        with read_from(_WORLD_SIZE):
            workers = int(found["world_size"])
        about = NCCLTrainerInitInfo(
            master_address=self._address, master_port=_free_port(), world_size=workers + 1, rank=0
        )
        return WeightTransferTrainerFactory.trainer_init(about, client=client, source=Weights())


class _Client:
    """What vLLM's sender asks of a server."""

    def __init__(self, server: Server) -> None:
        self._server, self.version = server, ""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", {"weight_version": weight_version or self.version})

    def _post(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self._server.ask(path, content, type="" if body is None else "application/json")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
