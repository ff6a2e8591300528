"""The optimum of particle guidance: the exact joint denoiser.

Particle guidance is meant for sets with the density p(x_1) ... p(x_B) Phi. Noised to level s, it is

    p_s(x_1) ... p_s(x_B) E[Phi(y_1..y_B) | x_1..x_B],

so that its denoiser is a posterior mean again. Where the data are k known modes, with posteriors
W_im = p(mode m | x_i) and posterior means mu_m(x_i) within a mode, and Phi is 1 where a set holds
as many different modes as it can, min(B, k), and 0 elsewhere, it is

    D'(x_i) = sum_m Q_im mu_m(x_i),   Q_im = P(particle i is in mode m | the set is that diverse)
                                           = sum_{a : a(i) = m} prod_j W_j,a(j) / (sum over all a),

a over the assignments of modes to particles that are injective (B <= k) or onto (B > k). All other
guidance is a rule in place of the expectation, on the means D(x_i) or on the x_i themselves; this
is what they can reach at best with a given number of network calls.

Its cost is that of the exact denoiser and B 2^k k operations a set. With unequal priors the modes'
frequencies shift: `joint_weights` of the priors themselves says to what.

Source: Corso et al. 2023, arXiv 2310.13102, for the density. The sum over assignments is a matrix
permanent (or a sum of them), here by dynamic programming over subsets of modes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diverse_sampling.method import ANSWERS, Method

MOST_MODES = 10  # there are 2^k subsets of k modes


def joint_weights(log_posteriors: Tensor) -> Tensor:
    """The posteriors of the modes of each particle, given that its set is as diverse as it can be.

    Arguments:
        log_posteriors: (G, B, k), log W up to a constant for each particle; -inf for modes that
            cannot be, which then do not count among the k

    Returns Q (G, B, k) float64, which sums to 1 over the modes. Raises ValueError for more than
    MOST_MODES modes.
    """
    possible = log_posteriors.isfinite().flatten(0, 1).any(0)  # (k,)
    k = int(possible.sum())
    if k > MOST_MODES:
        raise ValueError(f"modes: got {k}; accepted: at most {MOST_MODES}")
    weights = torch.zeros_like(log_posteriors, dtype=torch.float64)
    log_w = log_posteriors[:, :, possible].double().log_softmax(-1)
    weights[:, :, possible] = _forward_backward(log_w)
    return weights


def _forward_backward(log_w: Tensor) -> Tensor:
    """Q (G, B, k) of log W (G, B, k).

    A state is the set of modes that the first i particles are in, as a bit mask. `ahead[i]` holds
    the log-weight of all assignments of the particles before i by their state, `behind` that of the
    particles from i on, from a state to a set that is diverse.
    """
    G, B, k = log_w.shape
    states = torch.arange(2**k, device=log_w.device)
    bits = 1 << torch.arange(k, device=log_w.device)
    holds = (states & bits[:, None]) > 0  # (k, 2^k), whether a state holds a mode
    without = states & ~bits[:, None]  # (k, 2^k), the state without this mode
    added = states | bits[:, None]  # (k, 2^k), the state with it
    injective = B <= k

    def impossible() -> Tensor:
        return torch.full((G, 2**k), -math.inf, dtype=torch.float64, device=log_w.device)

    first = impossible()
    first[:, 0] = 0.0
    ahead = [first]
    for i in range(B - 1):
        reached = ahead[i][:, without]  # (G, k, 2^k), particle i brings the mode
        if not injective:
            reached = torch.logaddexp(reached, ahead[i][:, None])  # or is in one that is there
        reached = (reached + log_w[:, i, :, None]).masked_fill(~holds, -math.inf)
        ahead.append(reached.logsumexp(1))

    behind = torch.zeros_like(first) if injective else impossible()
    behind[:, -1] = 0.0
    log_q = torch.empty_like(log_w)
    for i in reversed(range(B)):
        onwards = behind[:, added] + log_w[:, i, :, None]  # (G, k, 2^k)
        if injective:
            onwards = onwards.masked_fill(holds, -math.inf)
        log_q[:, i] = (ahead[i][:, None] + onwards).logsumexp(-1)
        behind = onwards.logsumexp(1)
    return log_q.softmax(-1)


METHOD = Method(
    "the exact joint denoiser",
    lambda sets: sets.joint(),
    needs=(ANSWERS,),
    frequencies="shifted, computable",
    only=dict(sequential=1),
)
