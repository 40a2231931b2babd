"""vLLM and SGLang as their documentation has their answers, around a tiny teacher: what is asked for before a GPU.

Of vLLM (docs.vllm.ai: OpenAI-compatible server; Completions, extra parameters): ``/v1/models`` with ``max_model_len``;
``prompt_logprobs`` of a completion: nothing for the first token, then of each token a mapping from ids as text to
``logprob``, ``rank`` and ``decoded_token``, the k likeliest and the token itself; more than ``--max-logprobs`` refused;
minus infinity as -9999; temperature without effect but with ``--logprobs-mode processed_logprobs``. Completions of one
prompt with ``seed``, ``stop_token_ids``, ``ignore_eos``, ``return_token_ids``: ``token_ids`` with the end token,
``logprobs`` of OpenAI's form, whose tokens ``return_tokens_as_token_ids`` names by id, before temperature and filters
by default. Where it is allowed, ``/v1/load_lora_adapter`` with ``lora_name`` and ``lora_path``: completions ask for it
by name as their model, and ``/v1/models`` lists it with its ``parent``; ``/v1/unload_lora_adapter``. Where it knows
it (prompt token ID logprobs), ``/inference/v1/generate`` with ``prompt_logprob_token_ids``, exactly a row for each
token after ``prompt_logprob_start``, whose ``prompt_token_id_logprobs`` is a .npy file in base64.

Of SGLang (docs.sglang.io: native APIs, sampling parameters): ``/v1/models``; ``/generate`` with ``input_ids``, whose
answers have in ``meta_info``: ``input_token_logprobs`` and ``input_top_logprobs`` from ``logprob_start_len`` on, each
of log-probability, id and text, of the first without a log-probability. With ``return_flat_raw_top_logprobs_b64``, from
0.5.17 on, ``input_top_logprobs_val_flat_b64`` and ``_idx_flat_b64`` in their place: float32 and int32 of
``input_top_logprobs_shape``, after as many tokens without any as ``input_top_logprobs_null_prefix``.
"""

import base64
import io
import json
import threading

import numpy
import peft
import torch
import transformers
from loopback import LoopbackServer, Reply

from distill_tune.data.batch import Row, joined
from distill_tune.generation.sampling import Sampling, choose


class StandIn(LoopbackServer):
    """
    Args:
        teacher: loaded.
        tokenizer: of transformers, by which tokens are written; None writes none.
        most: log-probabilities of a position.
        heeds_temperature: in the log-probabilities of a prompt.
    """

    owner: str

    def __init__(self, teacher, tokenizer, *, most=20, heeds_temperature=False, longest=128):
        self._teacher, self._tokenizer = teacher, tokenizer
        self._most, self._heeds_temperature, self._longest = most, heeds_temperature, longest
        self.asked = []
        self._lock = threading.Lock()
        super().__init__(self._reply)

    def _reply(self, method, path, body):
        if method == "GET":
            found = self.get(path)
            status, found = (404, {"detail": "Not Found"}) if found is None else (200, found)
        else:
            asked = json.loads(body or b"{}")
            self.asked.append(asked)
            status, found = self.post(path, asked)
        return Reply(status, found.encode() if isinstance(found, str) else json.dumps(found).encode())

    def get(self, path):
        if path == "/v1/models":
            card = {"id": "tiny", "object": "model", "owned_by": self.owner, "max_model_len": self._longest}
            return {"object": "list", "data": [card, *self.adapters()]}
        return None

    def adapters(self):
        return []

    def log_probs(self, tokens, temperature, model="tiny"):
        """Of each token but the first, over the vocabulary ``[s - 1, v]``, in float64."""
        row = torch.tensor(tokens, dtype=torch.int32)
        with self._lock:
            signal = self._teacher(joined([Row(row, row)]))
            logits = signal.logits(0, len(row) - 1, signal.memory(len(row) - 1)).double()
        return (logits / (temperature if self._heeds_temperature else 1)).log_softmax(-1)

    def text(self, token):
        return None if self._tokenizer is None else self._tokenizer.decode([token])


class StandInVLLM(StandIn):
    """
    Attributes:
        eos: by which an answer ends unless ``ignore_eos`` is asked for.
        base: folder of the model, in transformers' form, where adapters may be loaded at run time.
    """

    owner = "vllm"
    eos = 2
    base = None
    scores_token_ids = True
    of_token_id = staticmethod(lambda log_probs: log_probs)  # logits with another --logprobs-mode

    def __init__(self, *arguments, **settings):
        self._adapted = {}  # models of transformers with their adapter, by name
        super().__init__(*arguments, **settings)

    def adapters(self):
        return [{"id": name, "object": "model", "owned_by": self.owner, "parent": "tiny"} for name in self._adapted]

    def log_probs(self, tokens, temperature, model="tiny"):
        if model == "tiny":
            return super().log_probs(tokens, temperature)
        with torch.no_grad():
            logits = self._adapted[model](torch.tensor([tokens])).logits[0, :-1].double()
        return (logits / (temperature if self._heeds_temperature else 1)).log_softmax(-1)

    def post(self, path, body):
        if path.endswith("_lora_adapter") and self.base is not None:
            return self._adapter(path, body)
        if path == "/inference/v1/generate" and self.scores_token_ids:
            return self._scored(body["token_ids"], body["sampling_params"])
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        if "prompt_logprobs" not in body:
            return self._completed(body)
        k = body["prompt_logprobs"]
        if k > self._most:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self._most}"
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        choices = []
        for index, tokens in enumerate(body["prompt"]):
            if len(tokens) + body["max_tokens"] > self._longest:
                return 400, {"error": {"message": "This model's maximum context length is exceeded", "code": 400}}
            answer = [None]
            for token, of_token in zip(tokens[1:], self.log_probs(tokens, body["temperature"]), strict=True):
                order = of_token.argsort(descending=True).tolist()
                rank = order.index(token) + 1
                listed = {one: number + 1 for number, one in enumerate(order[:k])} | {token: rank}
                answer.append(
                    {
                        str(one): {
                            "logprob": max(of_token[one].item(), -9999.0),
                            "rank": its_rank,
                            "decoded_token": self.text(one),
                        }
                        for one, its_rank in listed.items()
                    }
                )
            choices.append({"index": index, "text": "", "finish_reason": "length", "prompt_logprobs": answer})
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": choices[::-1]}

    def _scored(self, tokens, asked):
        start, named = asked["prompt_logprob_start"], asked["prompt_logprob_token_ids"]
        if len(named) != len(tokens) - 1 - start:
            return 400, {"error": {"message": "prompt_logprob_token_ids: wrong number of rows", "code": 400}}
        log_probs = self.log_probs(tokens, asked["temperature"])[start:]
        matrix = self.of_token_id(log_probs.gather(1, torch.tensor(named))).float().numpy()
        content = io.BytesIO()
        numpy.save(content, matrix)
        return 200, {
            "request_id": "1",
            "choices": [{"index": 0, "token_ids": [5], "finish_reason": "length"}],
            "prompt_token_id_logprobs": base64.b64encode(content.getvalue()).decode(),
        }

    def _adapter(self, path, body):
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            if self._adapted.pop(name, None) is None:
                return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found.", "code": 404}}
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self._adapted and not body.get("load_inplace"):
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded.", "code": 400}}
        base = transformers.AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        self._adapted[name] = peft.PeftModel.from_pretrained(base, body["lora_path"]).eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _completed(self, body):
        """An answer to one prompt, each token by a forward pass over all before it."""
        if body["model"] not in ("tiny", *self._adapted):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        prompt = body["prompt"]
        if len(prompt) + body["max_tokens"] > self._longest:
            return 400, {"error": {"message": "This model's maximum context length is exceeded", "code": 400}}
        if not -(2**63) <= body["seed"] < 2**63:
            return 400, {"error": {"message": "seed is out of range", "code": 400}}
        names = ("temperature", "top_p", "min_p", "repetition_penalty")
        top_k = None if body["top_k"] in (0, -1) else body["top_k"]
        sampling = Sampling(body["max_tokens"], top_k=top_k, **{name: body[name] for name in names})
        generator, tokens, log_probs, likeliest = torch.Generator().manual_seed(body["seed"]), [], [], []
        reason, stop_reason = "length", None
        while len(tokens) < body["max_tokens"]:
            logits = self.log_probs([*prompt, *tokens, 0], 1.0, body["model"])[
                -1:
            ].float()  # of what follows, whatever it is
            seen = torch.zeros(logits.shape, dtype=torch.bool)
            seen[0, prompt + tokens] = True
            penalised = None if sampling.repetition_penalty == 1 else seen
            token, _ = choose(logits, sampling, torch.randint(2**62, (1,), generator=generator), penalised)
            told = logits[0].log_softmax(-1)
            if self._heeds_temperature:
                told = (logits[0] / (sampling.temperature or 1)).log_softmax(-1)
            tokens.append(token.item())
            log_probs.append(max(told[token].item(), -9999.0))
            values, ids = told.topk(max(1, body["logprobs"]))
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            listed = {one: value for one, value in pairs if body["logprobs"]} | {tokens[-1]: log_probs[-1]}
            likeliest.append({f"token_id:{one}": value for one, value in listed.items()})
            if tokens[-1] in body["stop_token_ids"] or (not body["ignore_eos"] and tokens[-1] == self.eos):
                reason, stop_reason = "stop", tokens[-1]
                break
            if any(text in self._tokenizer.decode(tokens) for text in body["stop"]):
                reason = "stop"
                break
        listed = {"tokens": [f"token_id:{token}" for token in tokens], "token_logprobs": log_probs}
        choice = {"index": 0, "text": "", "finish_reason": reason, "stop_reason": stop_reason, "token_ids": tokens}
        choice["logprobs"] = listed | {"top_logprobs": likeliest, "text_offset": [0] * len(tokens)}
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}


class StandInSGLang(StandIn):
    """
    Args:
        knows_arrays: as from 0.5.17 on.
    """

    owner = "sglang"

    def __init__(self, *arguments, knows_arrays=True, **settings):
        super().__init__(*arguments, **settings)
        self._knows_arrays = knows_arrays

    def post(self, path, body):
        if path != "/generate":
            return 404, {"detail": "Not Found"}
        answers = []
        for tokens, start in zip(body["input_ids"], body["logprob_start_len"], strict=True):
            temperature = body["sampling_params"]["temperature"]
            of_all = [None, *self.log_probs(tokens, temperature)]
            own, top = [], []
            for place in range(start, len(tokens)):
                token, of_token = tokens[place], of_all[place]
                text = self.text(token) if body["return_text_in_logprobs"] else None
                if place == start:
                    own.append([None, token, text])
                    top.append(None)
                    continue
                own.append([of_token[token].item(), token, text])
                values, ids = of_token.topk(body["top_logprobs_num"])
                pairs = zip(values.tolist(), ids.tolist(), strict=True)
                top.append([[value, one, None] for value, one in pairs])
            meta = {"prompt_tokens": len(tokens), "input_token_logprobs": own}
            as_arrays = self._knows_arrays and body.get("return_flat_raw_top_logprobs_b64")
            meta |= _arrays(top, body["top_logprobs_num"]) if as_arrays else {"input_top_logprobs": top}
            answers.append({"text": "", "meta_info": meta})
        return 200, answers


def _arrays(top, k):
    known = [row for row in top if row is not None]
    found = {"input_top_logprobs_shape": [len(known), k], "input_top_logprobs_null_prefix": len(top) - len(known)}
    for name, place, dtype in (("val", 0, torch.float32), ("idx", 1, torch.int32)):
        values = torch.tensor([[entry[place] for entry in row] for row in known], dtype=dtype)
        found[f"input_top_logprobs_{name}_flat_b64"] = base64.b64encode(values.numpy().tobytes()).decode()
        found[f"input_top_logprobs_{name}_flat_b64_dtype"] = str(dtype).removeprefix("torch.")
    return found
