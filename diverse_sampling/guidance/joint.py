"""The optimum of particle guidance: the exact joint denoiser.

Particle guidance is meant for sets with the density p(x_1) ... p(x_B) Phi(y_1, ..., y_B). Noised to
level s, it is

    p_s(x_1) ... p_s(x_B) E[Phi | x_1..x_B],

so that its denoiser is a posterior mean again. If what a sample shows is one of k modes, with
posteriors W_im = p(mode m | x_i) and posterior means mu_m(x_i) within a mode, and Phi is 1 for the
compositions that are asked for and 0 elsewhere, it is

    D'(x_i) = sum_m Q_im mu_m(x_i),   Q_im = P(particle i is in mode m | the composition)
                                           = sum_{a : a(i) = m} prod_j W_j,a(j) / (sum over all a),

a over the assignments of modes to particles that make such a composition: without counts those with
as many different modes as there can be, injective (B <= k) or onto (B > k). All other guidance is a
rule in place of the expectation, on the means D(x_i) or on the x_i themselves; this is what they
can reach at best with a given number of network calls.

With unequal priors the modes' frequencies shift: `joint_weights` of the priors themselves says to
what.

Source: Corso et al. 2023, arXiv 2310.13102, for the density. The sum over assignments is a matrix
permanent (or a sum of them), up to MOST_EXACT modes or particles by dynamic programming over
subsets, B 2^k k operations a set. Beyond, belief propagation between particles and modes makes Q, B
k operations an iteration (Huang & Jebara 2009, arXiv 0908.1769; Vontobel 2013, arXiv 1107.4196).
"""

from __future__ import annotations

import math
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diverse_sampling.method import ANSWERS, Method

MOST_EXACT = 10  # there are 2^k subsets of k modes
# Of belief propagation: how many iterations at most, and which change of Q ends them.
ITERATIONS = 100
TOLERANCE = 1e-3
LARGEST = 1e9  # magnitude of a logarithm, in place of infinity
SMALL = 30.0  # -ln of what can be left out of 1 + a


def joint_weights(
    log_posteriors: Tensor, counts: Tensor | None = None, wanted: Tensor | None = None
) -> Tensor:
    """The posteriors of the modes of each particle, given the composition of its set.

    Arguments:
        log_posteriors: (G, B, k), log W up to a constant for each particle; -inf for modes that
            cannot be
        counts: (G, k) int64, how many particles of each set are in each mode, B in all. None: the
            sets are as diverse as they can be
        wanted: (G, k) bool, without counts: the modes that a set has to hold, B at most; particles
            may be in others too. None: all modes that can be

    Returns Q (G, B, k) float64, which sums to 1 over the modes. Raises ValueError for counts or
    wanted modes that B particles cannot be in.
    """
    B = log_posteriors.shape[1]
    log_w = log_posteriors.double().log_softmax(-1)
    if counts is not None:
        return _by_counts(log_w, counts.to(log_w.device))
    if wanted is None:
        possible = log_w.isfinite().flatten(0, 1).any(0)  # (k,)
        if B <= int(possible.sum()):
            return _assigned(log_w, possible, once=True)
        wanted = possible.expand(len(log_w), -1)
    else:
        possible = torch.ones_like(wanted[0])
    most = int(wanted.sum(1).max())
    if most > B:
        raise ValueError(f"wanted: got {most} modes; accepted: at most {B}, one for each particle")
    return _assigned(log_w, possible, once=False, wanted=wanted.to(log_w.device))


def _by_counts(log_w: Tensor, counts: Tensor) -> Tensor:
    """Q (G, B, k) of log W, for given counts (G, k)."""
    G, B, k = log_w.shape
    totals = counts.sum(1)
    if bool((totals != B).any()) or bool((counts < 0).any()):
        raise ValueError(f"counts: got {totals.tolist()} in all; accepted: {B}, one per particle")
    # A place for each particle: which mode it is for, (G, B).
    modes = torch.arange(k, device=log_w.device).expand(G, k)
    places = torch.stack([m.repeat_interleave(n) for m, n in zip(modes, counts)])
    places = places[:, None].expand(G, B, B)
    to_places = log_w.gather(2, places)
    exact = B <= MOST_EXACT
    q = _forward_backward(to_places, once=True) if exact else _propagated(to_places, _exactly_once)
    return torch.zeros_like(log_w).scatter_add_(2, places, q)


def _assigned(
    log_w: Tensor, possible: Tensor, *, once: bool, wanted: Tensor | None = None
) -> Tensor:
    """Q (G, B, k) of log W, with every mode `once` at most, or with those that are wanted."""
    q = torch.zeros_like(log_w)
    within = log_w[:, :, possible]
    if within.shape[2] <= MOST_EXACT:
        inside = None if wanted is None else wanted[:, possible]
        q[:, :, possible] = _forward_backward(within, once=once, wanted=inside)
    elif wanted is None:
        as_many = within.shape[1] == within.shape[2]
        q[:, :, possible] = _propagated(within, _exactly_once if as_many else _once_at_most)
    else:
        unasked = ~wanted[:, None, possible]
        q[:, :, possible] = _propagated(
            within, lambda odds: _once_at_least(odds).masked_fill(unasked, 0.0)
        )
    return q


def _forward_backward(log_w: Tensor, *, once: bool, wanted: Tensor | None = None) -> Tensor:
    """Q (G, B, k) of log W (G, B, k).

    A state is the set of modes that the first i particles are in, as a bit mask, to begin with
    those that nobody wants. `ahead[i]` holds the log-weight of all assignments of the particles
    before i by their state, `behind` that of the particles from i on, from a state to a set that
    holds what it has to.
    """
    G, B, k = log_w.shape
    states = torch.arange(2**k, device=log_w.device)
    bits = 1 << torch.arange(k, device=log_w.device)
    holds = (states & bits[:, None]) > 0  # (k, 2^k), whether a state holds a mode
    without = states & ~bits[:, None]  # (k, 2^k), the state without this mode
    added = states | bits[:, None]  # (k, 2^k), the state with it

    def impossible() -> Tensor:
        return torch.full((G, 2**k), -math.inf, dtype=torch.float64, device=log_w.device)

    first = impossible()
    start = first.new_zeros(G).long() if wanted is None else (~wanted * bits).sum(1)
    first[torch.arange(G), start] = 0.0
    ahead = [first]
    for i in range(B - 1):
        reached = ahead[i][:, without]  # (G, k, 2^k), particle i brings the mode
        if not once:
            reached = torch.logaddexp(reached, ahead[i][:, None])  # or is in one that is there
        reached = (reached + log_w[:, i, :, None]).masked_fill(~holds, -math.inf)
        ahead.append(reached.logsumexp(1))

    behind = torch.zeros_like(first) if once else impossible()
    behind[:, -1] = 0.0
    log_q = torch.empty_like(log_w)
    for i in reversed(range(B)):
        onwards = behind[:, added] + log_w[:, i, :, None]  # (G, k, 2^k)
        if once:
            onwards = onwards.masked_fill(holds, -math.inf)
        log_q[:, i] = (ahead[i][:, None] + onwards).logsumexp(-1)
        behind = onwards.logsumexp(1)
    return log_q.softmax(-1)


def _propagated(log_w: Tensor, log_factor: Callable[[Tensor], Tensor]) -> Tensor:
    """Q (G, B, k) of log W (G, B, k), approximately.

    Each particle tells each mode its odds of being there, by what the other modes have told it;
    each mode tells each particle the factor by which what the others said changes those odds.

    Arguments:
        log_factor: the log-odds of particles (G, B, k) -> the log of those factors, the same shape
    """
    log_w = log_w.clamp(min=-LARGEST)
    q = log_w.softmax(-1)
    factors = torch.zeros_like(log_w)
    for _ in range(ITERATIONS):
        odds = log_w - _others(log_w + factors, -1)
        answers = log_factor(odds).clamp(-LARGEST, LARGEST)
        q = (log_w + answers).softmax(-1)
        if float((q - (log_w + factors).softmax(-1)).abs().max()) < TOLERANCE:
            break
        # Half of the way, or particles that want the same mode would take turns for ever.
        factors = (factors + answers) / 2
    return q


def _others(log_a: Tensor, dim: int) -> Tensor:
    """ln of the sum of all a along dim but each by itself, like log_a; no digit cancels."""
    largest = torch.zeros_like(log_a, dtype=torch.bool)
    largest.scatter_(dim, log_a.argmax(dim, keepdim=True), True)
    rest = log_a.masked_fill(largest, -math.inf).logsumexp(dim, keepdim=True)
    whole = log_a.logsumexp(dim, keepdim=True)
    return torch.where(largest, rest, whole + torch.log1p(-(log_a - whole).exp()))


def _exactly_once(odds: Tensor) -> Tensor:
    """Log-factors of modes that hold one particle: only if no other one is there."""
    return -_others(odds, 1)


def _once_at_most(odds: Tensor) -> Tensor:
    """Log-factors of modes that hold one particle or none."""
    return -F.softplus(_others(odds, 1))


def _once_at_least(odds: Tensor) -> Tensor:
    """Log-factors of modes that hold a particle or more: 1 / P(another one is there)."""
    # P = 1 - exp(-s), s = sum log(1 + odds); both are their argument if that is small.
    each = torch.where(odds < -SMALL, odds, F.softplus(odds).log())
    log_s = _others(each, 1)
    return -torch.where(log_s < -SMALL, log_s, (-torch.expm1(-log_s.exp())).log())


METHOD = Method(
    "the optimum",
    lambda sets: sets.joint(),
    needs=(ANSWERS,),
    frequencies="shifted, computable",
    only=dict(sequential=1),
)
