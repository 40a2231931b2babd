"""The loss head alone, on random hidden states: ``head_of.py TOOL ROWS VOCABULARY WIDTH TEACHER_WIDTH REPEATS DEVICE``.

Forward and backward of CE and forward KL (TRL and Liger: what their heads do, see RESULTS.md) for the student's hidden
states, output layers frozen. Prints a JSON line: the seconds of each repeat and the memory that they added.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch


def ours(x):
    from distill_tune.losses import HiddenStates, LinearProjection, distillation_loss

    signal = HiddenStates(x.teacher_hidden, LinearProjection(x.teacher_weight))
    sums = distillation_loss(x.hidden, LinearProjection(x.weight), x.targets, signal, kd_ratio=0.5)
    (sums.loss / len(x.hidden)).backward()
    return sums.ce.item() / len(x.hidden), sums.kd.item() / len(x.hidden)


def torchtune(x):
    """As its KD recipe has it: chunked output for both models, then the two losses."""
    import distill_tune._torchtune_compat  # noqa: F401

    from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss

    logits = [rows @ x.weight.T for rows in x.hidden[None].chunk(8, dim=1)]
    with torch.no_grad():
        teacher_logits = [rows @ x.teacher_weight.T for rows in x.teacher_hidden[None].chunk(8, dim=1)]
    ce = CEWithChunkedOutputLoss()(logits, x.targets[None])
    kd = ForwardKLWithChunkedOutputLoss()(logits, teacher_logits, x.targets[None])
    (0.5 * ce + 0.5 * kd).backward()
    return ce.item(), kd.item()


def trl(x):
    """Its newest head: forward KL alone."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    kd, _ = ChunkedDivergenceFunction.apply(x.hidden, x.weight, None, x.teacher_hidden, x.teacher_weight, None, 0.0)
    kd.mean().backward()
    return None, kd.mean().item()


def liger(x):
    """CE and Jensen-Shannon, the only divergence that it has; beta 0 is its forward KL."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    head = LigerFusedLinearJSDLoss(beta=0.0, compiled=x.hidden.is_cuda)
    loss = head(x.hidden, x.weight, x.teacher_hidden, x.teacher_weight, x.targets)
    loss.backward()
    return None, loss.item()


def limit(x):
    """The three products alone, in the best of several chunks."""
    rows = x.chunk
    logits = x.hidden.new_empty(rows, len(x.weight))
    teacher_logits, gradient = torch.empty_like(logits), torch.empty_like(x.hidden)
    with torch.no_grad():
        for start in range(0, len(x.hidden), rows):
            part = slice(start, min(start + rows, len(x.hidden)))
            n = part.stop - start
            torch.mm(x.hidden[part], x.weight.T, out=logits[:n])
            torch.mm(x.teacher_hidden[part], x.teacher_weight.T, out=teacher_logits[:n])
            torch.mm(logits[:n], x.weight, out=gradient[part])


class Example:
    def __init__(self, rows, vocabulary, width, teacher_width, device):
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(0)

        def random(*size):
            made = torch.empty(size, dtype=dtype, device=device)
            return made.normal_(generator=generator)

        self.hidden, self.teacher_hidden = random(rows, width).requires_grad_(), random(rows, teacher_width)
        self.weight, self.teacher_weight = random(vocabulary, width).mul_(0.02), random(vocabulary, teacher_width)
        self.teacher_weight.mul_(0.02)
        self.targets = torch.randint(vocabulary, (rows,), generator=generator, device=device)
        self.chunk = rows


def measure(head, x, repeats, device):
    peak = PeakMemory(device)
    seconds, losses = [], None
    for repeat in range(repeats + 1):
        x.hidden.grad = None
        started = time.perf_counter()
        losses = head(x)
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat or repeats == 1:  # the first warms up
            seconds.append(time.perf_counter() - started)
        if repeats == 1:
            break
    return {"seconds": seconds, "added_bytes": peak.added(), "losses": losses}


class PeakMemory:
    """Above what there is when it is made; on the CPU by the kernel's high-water mark, proc_pid_clear_refs(5)."""

    def __init__(self, device):
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = self._status("VmRSS")

    def added(self):
        return (torch.cuda.max_memory_allocated() if self._cuda else self._status("VmHWM")) - self._before

    @staticmethod
    def _status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def best_chunk(x, device):
    """The rows with which the bare products are fastest."""
    found = {}
    for x.chunk in {min(rows, len(x.hidden)) for rows in (256, 512, 1024, 2048, 4096)}:
        found[x.chunk] = statistics.median(measure(limit, x, 1, device)["seconds"])
    return min(found, key=found.get)


if __name__ == "__main__":
    tool, *sizes, repeats, device = sys.argv[1:]
    example = Example(*map(int, sizes), device)
    if tool == "limit":
        example.chunk = best_chunk(example, device)
    print(json.dumps(measure(globals()[tool], example, int(repeats), device)))
