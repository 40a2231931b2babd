"""Every divergence as its formula is written, on log-probabilities of any precision, for autograd."""

import math

import torch

from distill_tune import losses


def kl(p, q):
    """KL(p || q) of log-probabilities, whatever is excluded left out."""
    excluded = p.isinf() | q.isinf()
    p, q = p.masked_fill(excluded, 0.0), q.masked_fill(excluded, 0.0)  # autograd's 0 * inf would be nan
    return (p.exp() * (p - q)).masked_fill(excluded, 0.0).sum(-1)


def mixed(p, q, share):
    return torch.logaddexp(p + math.log(share), q + math.log(1 - share))


def plain_adaptive(p, q, head_mass):
    """As the paper's authors write it: sorted, cumulated, masked."""
    likeliest, order = p.exp().detach().sort(-1, descending=True)
    gap = (likeliest - q.exp().detach().gather(1, order)).abs()
    is_head = likeliest.cumsum(-1) <= head_mass
    is_head[:, 0] = True
    share = torch.where(gap.sum(-1) > 0, (gap * is_head).sum(-1) / gap.sum(-1), 0.5)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def plain_mse(p, q):
    known = p.isfinite() & q.isfinite()
    difference = torch.where(known, q - p, 0.0)
    centred = torch.where(known, difference - difference.sum(-1, keepdim=True) / known.sum(-1, keepdim=True), 0.0)
    return centred.square().sum(-1) / known.sum(-1)


def plain_top_k(p, q, k, divergence):
    tokens = p.topk(k).indices
    rest = torch.ones_like(p, dtype=torch.bool).scatter(1, tokens, False)

    def grouped(log_probs):
        return torch.cat([log_probs.gather(1, tokens), log_probs.where(rest, -torch.inf).logsumexp(-1)[:, None]], 1)

    return divergence(grouped(p), grouped(q))


# name: (ours, the formula on log-probabilities of teacher p and student q)
DIVERGENCES = {
    "forward": (losses.ForwardKL(), kl),
    "reverse": (losses.ReverseKL(), lambda p, q: kl(q, p)),
    "symmetric": (losses.SymmetricKL(0.3), lambda p, q: 0.3 * kl(p, q) + 0.7 * kl(q, p)),
    "jsd 0": (losses.JensenShannon(0.0), kl),
    "jsd 0.1": (losses.JensenShannon(0.1), lambda p, q: 0.1 * kl(p, m := mixed(p, q, 0.1)) + 0.9 * kl(q, m)),
    "jsd 0.5": (losses.JensenShannon(), lambda p, q: 0.5 * kl(p, m := mixed(p, q, 0.5)) + 0.5 * kl(q, m)),
    "jsd 1": (losses.JensenShannon(1.0), lambda p, q: kl(q, p)),
    "skewed forward": (losses.SkewedForwardKL(0.1), lambda p, q: kl(p, mixed(p, q, 0.1))),
    "skewed reverse": (losses.SkewedReverseKL(0.1), lambda p, q: kl(q, mixed(p, q, 0.9))),
    "total variation": (losses.TotalVariation(), lambda p, q: 0.5 * (p.exp() - q.exp()).abs().sum(-1)),
    "adaptive": (losses.AdaptiveKL(0.5), lambda p, q: plain_adaptive(p, q, 0.5)),
    "mse": (losses.LogitMSE(), plain_mse),
    "top 5": (losses.TopK(5), lambda p, q: plain_top_k(p, q, 5, kl)),
    "top 5 reverse": (losses.TopK(5, losses.ReverseKL()), lambda p, q: plain_top_k(p, q, 5, lambda a, b: kl(b, a))),
    "top 5 jsd": (
        losses.TopK(5, losses.JensenShannon()),
        lambda p, q: plain_top_k(p, q, 5, lambda a, b: 0.5 * kl(a, m := mixed(a, b, 0.5)) + 0.5 * kl(b, m)),
    ),
    "clipped": (losses.ClippedPerToken(8.0), lambda p, q: kl(p, q).clamp(max=8.0)),
    "clipped reverse": (losses.ClippedPerToken(8.0, losses.ReverseKL()), lambda p, q: kl(q, p).clamp(max=8.0)),
    "top of all": (losses.TopK(100), kl),
}
