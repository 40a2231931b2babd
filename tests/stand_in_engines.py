"""vLLM and SGLang as their documentation has their answers, around a tiny teacher: what is asked for before a GPU.

Of vLLM (docs.vllm.ai: OpenAI-compatible server; Completions, extra parameters): ``/v1/models`` with ``max_model_len``;
``prompt_logprobs`` of a completion: nothing for the first token, then of each token a mapping from ids as text to
``logprob``, ``rank`` and ``decoded_token``, the k likeliest and the token itself; more than ``--max-logprobs`` refused;
minus infinity as -9999; temperature without effect but with ``--logprobs-mode processed_logprobs``.

Of SGLang (docs.sglang.io: native APIs, sampling parameters): ``/v1/models``; ``/generate`` with ``input_ids``, whose
answers have in ``meta_info``: ``input_token_logprobs`` and ``input_top_logprobs`` from ``logprob_start_len`` on, each
of log-probability, id and text, of the first without a log-probability. With ``return_flat_raw_top_logprobs_b64``, from
0.5.17 on, ``input_top_logprobs_val_flat_b64`` and ``_idx_flat_b64`` in their place: float32 and int32 of
``input_top_logprobs_shape``, after as many tokens without any as ``input_top_logprobs_null_prefix``.
"""

import base64
import json

import torch
from loopback import LoopbackServer, Reply

from distill_tune.data.batch import Row, joined


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
        super().__init__(self._reply)

    def _reply(self, method, path, body):
        if method == "GET":
            found = self.get(path)
            status, found = (404, {"detail": "Not Found"}) if found is None else (200, found)
        else:
            asked = json.loads(body)
            self.asked.append(asked)
            status, found = self.post(path, asked)
        return Reply(status, json.dumps(found).encode())

    def get(self, path):
        if path == "/v1/models":
            card = {"id": "tiny", "object": "model", "owned_by": self.owner, "max_model_len": self._longest}
            return {"object": "list", "data": [card]}
        return None

    def log_probs(self, tokens, temperature):
        """Of each token but the first, over the vocabulary ``[s - 1, v]``, in float64."""
        row = torch.tensor(tokens, dtype=torch.int32)
        signal = self._teacher(joined([Row(row, row)]))
        logits = signal.logits(0, len(row) - 1, signal.memory(len(row) - 1)).double()
        return (logits / (temperature if self._heeds_temperature else 1)).log_softmax(-1)

    def text(self, token):
        return None if self._tokenizer is None else self._tokenizer.decode([token])


class StandInVLLM(StandIn):
    owner = "vllm"

    def post(self, path, body):
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
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
