"""vLLM's weight transfer as its documentation and source (0.33) have it, both sides, without NCCL.

Of the trainer's side ``vllm.distributed.weight_transfer``: ``ParamMeta``, ``WeightSource`` with ``metadata`` (cached)
and ``iter_full``, ``NCCLTrainerInitInfo``, ``WeightTransferTrainerFactory.trainer_init``, whose sender's
``send_weights`` has the workers receive while it broadcasts, checks what it sends against the metadata, and leaves the
metadata out where it is that of the round before. What NCCL carries is put into a queue here.

Of the server ``/pause``, during which completions are 503, ``/resume``, ``/get_world_size``,
``/init_weight_transfer_engine``, ``/start_weight_update``, ``/update_weights``, ``/finish_weight_update``, and
``weight_versions`` of completions.
"""

import concurrent.futures
import dataclasses
import functools
import queue
import sys
import types
from typing import Any

import torch
import transformers
from stand_in_engines import StandInVLLM

_carried: "queue.Queue[torch.Tensor]" = queue.Queue()


class StandInVLLMOfWeights(StandInVLLM):
    """
    Attributes:
        is_allowed: whether it was started for weight transfer.
        calls: paths, in order, without completions.
    """

    is_allowed = True

    def __init__(self, teacher, folder):
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._is_paused, self._told, self._version, self._is_open = False, {}, "initial", False
        self.calls = []
        super().__init__(teacher, None)

    def log_probs(self, tokens, temperature, model="tiny"):
        with torch.no_grad():
            return self._model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)

    def get(self, path):
        return {"world_size": 1} if path.startswith("/get_world_size") and self.is_allowed else super().get(path)

    def post(self, path, body):
        path, _, query = path.partition("?")
        if path == "/v1/completions":
            if self._is_paused:
                return 503, {"error": {"message": "generation is paused", "code": 503}}
            status, found = super().post(path, body)
            if status == 200 and body.get("return_weight_versions"):
                for choice in found["choices"]:
                    span = {"version": self._version, "start": 0, "end": len(choice["token_ids"])}
                    choice["weight_versions"] = [span]
            return status, found
        if not self.is_allowed:
            return 404, {"detail": "Not Found"}
        self.calls.append(path)
        if path == "/pause":
            assert query == "mode=wait"
            self._is_paused = True
        elif path == "/resume":
            self._is_paused = False
        elif path == "/init_weight_transfer_engine":
            assert body["init_info"].keys() >= {"master_address", "master_port", "rank_offset", "world_size", "packed"}
        elif path == "/start_weight_update":
            self._is_open = True
        elif path == "/update_weights":
            self._receive(body["update_info"])
        elif path == "/finish_weight_update":
            self._is_open, self._version = False, body["weight_version"]
        else:
            return 404, {"detail": "Not Found"}
        return 200, {"message": "done"}

    @torch.no_grad()
    def _receive(self, told):
        assert self._is_open
        assert self._is_paused
        self._told = told if told["names"] else self._told
        own = self._model.state_dict()
        for name, dtype, shape in zip(*(self._told[key] for key in ("names", "dtype_names", "shapes")), strict=True):
            value = _carried.get(timeout=10)
            assert (str(value.dtype), list(value.shape)) == (f"torch.{dtype}", shape)
            own[name].copy_(value)  # KeyError where the model has no such weight


@dataclasses.dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        assert isinstance(cls.__dict__["metadata"], functools.cached_property)


@dataclasses.dataclass
class NCCLTrainerInitInfo:
    master_address: str
    master_port: int
    world_size: int
    packed: bool = True
    rank: int = dataclasses.field(kw_only=True)


class _Sender:
    def __init__(self, about, client, source):
        self._client, self._source, self._sent = client, source, None
        told = {"master_address": about.master_address, "master_port": about.master_port}
        told |= {"rank_offset": 1, "world_size": about.world_size, "packed": about.packed}
        client.init_weight_transfer_engine(told)

    def send_weights(self):
        meta, told = self._source.metadata, {"names": [], "dtype_names": [], "shapes": []}
        if meta != self._sent:
            for one in meta:
                told["names"].append(one.name)
                told["dtype_names"].append(str(one.dtype).removeprefix("torch."))
                told["shapes"].append(list(one.shape))
        self._client.start_weight_update()
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            received = thread.submit(self._client.update_weights, told)
            for one, (name, value) in zip(meta, self._source.iter_full(), strict=True):
                assert (name, value.dtype, tuple(value.shape)) == (one.name, one.dtype, one.shape)
                _carried.put(value.clone())
            received.result()
        self._client.finish_weight_update()
        self._sent = meta


class WeightTransferTrainerFactory:
    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        return _Sender(init_info, client, source)


def installed(monkeypatch) -> None:
    """Have ``import vllm`` find the trainer's side."""
    transfer = "vllm.distributed.weight_transfer"
    for name in ("vllm", "vllm.distributed", transfer, f"{transfer}.nccl_engine"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    for one in (ParamMeta, WeightSource, WeightTransferTrainerFactory):
        setattr(sys.modules[transfer], one.__name__, one)
    sys.modules[f"{transfer}.nccl_engine"].NCCLTrainerInitInfo = NCCLTrainerInitInfo
