"""Guidance by classes: sets that show every class, or the composition that somebody asks for.

The joint denoiser (`joint.py`) needs no known answers if a classifier of noisy images knows which
class a particle will show. With p_s(x | c) ~ p_s(x) p(c | x; s), and Q as there, the posterior of
each particle's class given the composition of its set, the denoiser of these sets is

    D'(x_i) = D(x_i) + factor s^2 sum_c Q_ic grad_x log p(c | x_i; s),

exact at factor 1 if the classifier is; more makes up for what few calls and a classifier miss. The
gradient runs through the classifier alone, not through D.

A classifier of clean images can be asked of D(x) instead. Its gradient is then the one in D, and
the variance that a sample still has, T (1 - V), takes the place of s^2 (`pg.py`), and D moves by 4
sqrt(T (1 - V)) at most. It finds less: at high noise D is a blend that it has never seen, and its
gradient can lead to what it alone takes for a class.

Source: classifier guidance, Dhariwal & Nichol 2021, arXiv 2105.05233, equation 10, with the joint
posterior of a set's classes in place of one class.
Uncertain: how much factor is right for a classifier that is not exact.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diverse_sampling.decisions import Decisions
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.guidance.base import Guided, excess, finite
from diverse_sampling.guidance.joint import joint_weights
from diverse_sampling.method import CLASSES, PILOT, Method, Sets
from diverse_sampling.noise import Stream

LogPosterior = Callable[[Tensor, Tensor], Tensor]
FACTOR = 8.0
# How far a classifier of clean images may move D(x), in standard deviations of what a sample can
# still become: its gradient is large where images are not.
REACH = 4.0
INDEPENDENT = "independent"


class ClassGuidance(Guided):
    """A denoiser of sets with the composition that somebody asks for; wraps any denoiser of sets.

    Arguments:
        denoise, levels: as in `Guided`
        log_posterior: (x (G, B, C, H, W), sigma) -> log p(class | x; sigma), (G, B, k),
            differentiable in x
        counts: (k,) or (G, k) int64, how many particles of a set show each class, B in all. None:
            as many different classes as there can be
        wanted: (G, k) bool, without counts: the classes that a set has to show; None: all
        targets: (G, B) int64, a class for each particle by itself, whatever the others show: the
            control that tells what guidance gives from what the composition gives
        factor: strength; 0 is the denoiser itself
        decisions: None: `log_posterior` is asked of the noisy x. What a pilot measured: it is asked
            of D(x), for classifiers of clean images
    """

    def __init__(
        self,
        denoise: Denoiser,
        log_posterior: LogPosterior,
        *,
        counts: Tensor | None = None,
        wanted: Tensor | None = None,
        targets: Tensor | None = None,
        factor: float = FACTOR,
        decisions: Decisions | None = None,
        **levels: float | None,
    ):
        super().__init__(denoise, **levels)
        self.log_posterior = log_posterior
        self.counts = counts
        self.wanted = wanted
        self.targets = targets
        self.factor = factor
        self.decisions = decisions

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x) + factor s^2 sum_c Q_c grad log p(c), like x. Raises ValueError for counts that are
        not B in all."""
        denoised = self.denoise(x, sigma)
        if self.factor == 0:
            return denoised
        asked = x if self.decisions is None else denoised
        with torch.enable_grad():
            asked = asked.detach().requires_grad_()
            log_p = self.log_posterior(asked, sigma)
            if log_p.ndim != 3 or log_p.shape[:2] != x.shape[:2]:
                accepted = f"[{x.shape[0]}, {x.shape[1]}, k] for samples {list(x.shape)}"
                reject("shape of log_posterior", list(log_p.shape), accepted)
            (grad,) = torch.autograd.grad(log_p, asked, self.weights(log_p.detach()).to(log_p))
        if self.decisions is None:
            return finite(denoised + self.factor * sigma**2 * grad)
        undecided = self.decisions.undecided(float(sigma))
        moves = self.factor * undecided * grad
        return finite(denoised + moves / excess(moves, REACH, undecided))

    def weights(self, log_p: Tensor) -> Tensor:
        """Q of log p, both (G, B, k)."""
        if self.targets is not None:
            return F.one_hot(self.targets.to(log_p.device), log_p.shape[2])
        counts = self.counts
        if counts is not None:
            G, _, k = log_p.shape
            if counts.shape not in ((k,), (1, k), (G, k)):
                reject(
                    "shape of counts", list(counts.shape), f"[{k}] or [{G}, {k}], k = {k} classes"
                )
            counts = counts.expand(G, -1)
        return joint_weights(log_p, counts, self.wanted)


def composition_of(text: str, names: Sequence[str], batch_size: int) -> Tensor | None:
    """The composition that somebody asks for, in words.

    Arguments:
        text: "all", as many different classes as there can be; "independent", a class for each
            particle by itself; "3:5,8:5", five particles of class 3 and five of class 8;
            "3:70%,8:30%", such shares in the mean over sets
        names: of the k classes
        batch_size: B

    Returns counts (k,) int64, shares (k,) float64, or None for the first two. Raises SettingError.
    """
    if text in ("all", INDEPENDENT):
        return None
    parts = [re.fullmatch(r"(.+):(\d+(?:\.\d+)?)(%?)", part.strip()) for part in text.split(",")]
    found = [part.groups() for part in parts if part is not None]
    accepted = (
        f"all, {INDEPENDENT}, numbers such as {names[0]}:{batch_size}, or shares such as "
        f"{names[0]}:100%"
    )
    if len(found) < len(parts) or len({unit for _, _, unit in found}) > 1:
        reject("classes", text, accepted)
    asked = {name: float(number) for name, number, _ in found}
    if len(asked) < len(found) or not asked.keys() <= set(names):
        reject("classes", text, f"each of the classes {', '.join(names)} once")
    amounts = torch.tensor([asked.get(name, 0.0) for name in names], dtype=torch.float64)
    if found[0][2]:
        if abs(float(amounts.sum()) - 100) > 1e-6:
            reject("classes", text, f"shares of 100% in all; these are {float(amounts.sum()):g}%")
        return amounts / 100
    if float(amounts.sum()) != batch_size or bool((amounts % 1 > 0).any()):
        reject("classes", text, f"whole numbers of batch_size = {batch_size} particles in all")
    return amounts.long()


def drawn_counts(shares: Tensor, batch_size: int, starts: Tensor) -> Tensor:
    """How many of B particles show each class, with given shares in the mean over sets.

    Systematic sampling: B points at equal distances, from a start of each set, fall on the classes'
    shares; so a class has B times its share, rounded up or down.

    Arguments:
        shares: (k,) float64, 1 in all
        batch_size: B
        starts: (G,) in [0, 1)

    Returns (G, k) int64, B in each row.
    """
    ends = (batch_size * shares.cumsum(0)).round(decimals=9)
    below = (ends - starts[:, None]).ceil().clamp(0, batch_size)  # points below each class's end
    below[:, -1] = batch_size
    return below.diff(dim=1, prepend=torch.zeros_like(below[:, :1])).long()


def asked_counts(text: str, names: Sequence[str], batch_size: int, starts: Tensor) -> Tensor | None:
    """The counts (G, k) of each set that somebody asks for; None without any.

    Arguments and errors are those of `composition_of` and `drawn_counts`.
    """
    asked = composition_of(text, names, batch_size)
    if asked is None:
        return None
    if asked.is_floating_point():
        return drawn_counts(asked, batch_size, starts)
    return asked.expand(len(starts), -1)


@dataclass(frozen=True)
class Options:
    """Classes"""

    classes: str = "all"
    """classes: the composition of each set; all, as many different classes as there can be;
    3:5,8:5, this many particles of each; 3:70%,8:30%, these shares in the mean over sets;
    independent, a class for each particle by itself, the control"""
    class_factor: float = FACTOR
    """classes: strength; 1 is right for an exact classifier and many steps"""
    classifier: Optional[str] = None
    """classes: the classifier of noisy pictures, a file that lab/train_classifier.py wrote, or the
    name of an included one: noisy, which knows digits, or clusters, which has seen no labels (null:
    noisy; if a world's rule tells the classes, none is needed)"""

    def __post_init__(self):
        if not 0 <= self.class_factor < math.inf:
            reject("class_factor", self.class_factor, "a number >= 0")


def _make(sets: Sets) -> ClassGuidance:
    classes = sets.classes()
    counts = asked_counts(sets.options.classes, classes.names, sets.particles, sets.evenly)
    targets = None
    if sets.options.classes == INDEPENDENT:
        k = len(classes.names)
        each = [
            torch.randint(k, (sets.particles,), generator=generator)
            for generator in sets.generators(Stream.QUANTILES)
        ]
        targets = torch.stack(each)
    return ClassGuidance(
        sets.denoise,
        classes.log_posterior,
        counts=counts,
        targets=targets,
        wanted=classes.wanted,
        factor=sets.options.class_factor,
        decisions=None,  # these classifiers know noise
        **sets.levels,
    )


METHOD = Method(
    "guidance by classes",
    _make,
    needs=(CLASSES, PILOT),
    shown=dict(classes=" ({})", class_factor=", factor {:g}"),
    only=dict(sequential=1, medoids_of=1),
    options=Options,
)
