"""Tasks: what sets are asked, which answers are right, and how sets are measured.

    NextFrame            the frame that follows on the given ones, in a world of digits
    ClassTask            a picture of one of several classes, such as a digit
    FramesTask           the frame or mask that follows on frames from the user's files
    MixtureTask          points in the plane, from a mixture of ten Gaussians

Samples are (G, B, H, W) on the CPU: G sets of B particles. Images lie in [0, 1] up to overshoot; a
point of the plane is an "image" of 1 x 2 pixels, its coordinates. A user's frames may be in colour,
with an axis of 3 before H, and answers may be class labels, uint8 (`worlds/channels.py`). A mode is
one of the answers between which a world chooses, such as a direction or a digit class.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser, to_model_range, to_unit_range
from diverse_sampling.exact import Bank, exact_denoiser, log_weights
from diverse_sampling.guidance import joint_weights
from diverse_sampling.method import Classes
from diverse_sampling.noise import set_generator
from lab import checkpoint
from lab.classifier import NoisyClassifier, judged
from lab.judge import Judge
from lab.metrics import (
    LEAST,
    answer_metrics,
    class_coverage,
    combination_metrics,
    cosine_kernel,
    displacement,
    diversity_metrics,
    drawn_answers_ged,
    energy_score,
    expected_modes_iid,
    iou_distance,
    mean_interval,
    mixture_modes,
    mode_metrics,
    motion_metrics,
    nearest_direction,
    nearest_image,
    nearest_in_class,
    pairwise_l2,
    recognise,
    share_metrics,
    spread_metrics,
    wilson_interval,
    without_background,
)
from worlds.channels import as_images, as_planes, mixed, one_hot
from worlds.moving_digits import Centered, Halves, Mixture, MovingDigits, Sequences, World
from worlds.own_data import OwnFrames, OwnPictures


class Task:
    """The conditions of G sets, their right answers, and the metrics of what was sampled.

    Set g always has the same condition: it depends on the seed and on g, not on the other sets.

    Arguments:
        world: where conditions and right answers come from
        num_sets: G
        seed: the seed of the run

    Attributes:
        device: where a network that judges samples computes
        has_classes: whether `classes` knows which classes a sample may show
        cond: (G, c, H, W) in [0, 1], the conditioning frames; c is 0 without a condition
        answers: (G, k, H, W) in [0, 1], the right frames of each set, or None where they are not
            finitely many or not known
        labels: (G,) int64, the digit class that each set shows, or None
    """

    world: Any  # the subclass says which
    cond: Tensor
    answers: Tensor | None = None
    labels: Tensor | None = None
    sequences: Sequences  # of worlds of frames, not of the plane
    device: torch.device = torch.device("cpu")
    has_classes: bool = False

    def __init__(self, world: World, num_sets: int, seed: int):
        self.world = world
        self.num_sets = num_sets
        self.seed = seed

    @staticmethod
    def most_sets(world: Any) -> int | None:
        """How many sets have a condition of their own; None where they need none."""
        return None

    def truth(self) -> dict[str, Tensor]:
        """What is known of each set beside its condition, for samples.npz."""
        return {}

    def exact_denoiser(self, sets: Tensor, device: torch.device, joint: bool = False) -> Denoiser:
        """The posterior mean over the right answers of some sets, sets (G',) int64.

        With `joint` it is that of whole sets, given that they are as diverse as they can be
        (`diverse_sampling/guidance/joint.py`).
        """
        if self.answers is None:
            raise ValueError("denoiser: got 'exact'; accepted: trained if answers are unknown")
        answers = self.answers[sets]
        priors = self.priors(sets)
        if joint:  # the optimum is one of the answers that can be
            possible = priors.view(-1, priors.shape[-1]).any(0)
            answers, priors = answers[:, possible], priors[..., possible]
        images = self.to_model(answers, device)  # (G', k, C, H, W)
        log_prior = priors.log().float().to(device)
        return exact_denoiser(images, log_prior, joint=joint)

    def classes(self, sets: Tensor, device: torch.device) -> Classes:
        """What the classes of some sets are, and how noisy pictures are recognised.

        Where nothing else is known they are the right answers, which the world's rule makes of the
        condition.
        """
        assert self.answers is not None  # `assemble` says so
        images = self.to_model(self.answers[sets], device)
        log_prior = self.priors(sets).log().float().to(device)
        names = [str(mode) for mode in range(images.shape[1])]

        def log_posterior(x: Tensor, sigma: Tensor) -> Tensor:
            return log_weights(x, sigma, images, log_prior).log_softmax(-1)

        return Classes(names, log_posterior)

    def priors(self, sets: Tensor) -> Tensor:
        """The prior of each right answer: (k,), or (G', k) where sets differ. float64."""
        return self.world.mode_probabilities

    def condition(self, sets: Tensor, device: torch.device) -> Tensor | None:
        """The conditioning frames of some sets for a network: (G', Cc, H, W) in [-1, 1]."""
        cond = self.cond[sets]
        if cond.shape[1] == 0:
            return None
        return to_model_range(cond.flatten(1, -3)).to(device)

    def to_samples(self, x: Tensor) -> Tensor:
        """What the sampler returns -> samples: (G', B, C, H, W) in [-1, 1] -> (G', B, H, W)."""
        return as_images(to_unit_range(x), self.world.label_classes).cpu()

    def to_model(self, samples: Tensor, device: torch.device) -> Tensor:
        """The inverse of `to_samples`: (G', B, H, W) -> (G', B, C, H, W) on the device."""
        colours = self.world.answer_channels > 1
        return to_model_range(as_planes(samples, self.world.label_classes, colours)).to(device)

    def pictured(self, x: Tensor) -> Tensor:
        """What the sampler sees on its way, x (..., C, H, W) or D(x), as pictures on the CPU:
        (..., H, W) or, of colours and classes, (..., 3, H, W), in the range of x."""
        return to_model_range(mixed(to_unit_range(x), self.world.label_classes)).cpu()

    def comparable(self, samples: Tensor) -> Tensor:
        """Samples as numbers that can be subtracted: class labels with a channel per class."""
        classes = self.world.label_classes
        return one_hot(samples, classes) if classes else samples

    def modes(self, samples: Tensor, sets: Tensor) -> Tensor | None:
        """The mode of each particle of some sets, -1 for none: (G', B) int64. None without modes.

        Arguments:
            samples: (G', B, H, W)
            sets: (G',) int64, the numbers of these sets
        """
        return None

    def measure(self, samples: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """The metrics of all sets, and the mode of each particle.

        samples (G, B, H, W) -> (what metrics.json holds, modes (G, B) int64 or None without modes).
        """
        raise NotImplementedError


class _DigitTask(Task):
    """A task in a world of digits: one window per set, each with a test digit of its own."""

    world: MovingDigits

    def __init__(self, world: MovingDigits, num_sets: int, seed: int):
        super().__init__(world, num_sets, seed)
        digits_per_set = world.num_digits
        which = _shuffled(len(world.digits.labels), num_sets * digits_per_set, seed)
        which = which.view(-1, 1, digits_per_set)
        self.sequences = Sequences.cat(
            [
                world.windows(1, set_generator(seed, g), at_choice=world.directed, which=which[g])
                for g in range(num_sets)
            ]
        )
        self.cond, _ = self.sequences.split(world.num_cond_frames)
        self.labels = self.sequences.labels[:, 0]
        self.answers = world.futures(self.sequences) if world.directed else None

    def truth(self):
        return dict(
            labels=self.sequences.labels,
            positions=self.sequences.positions,
            choices=self.sequences.choices,
        )


class NextFrame(_DigitTask):
    """The next frame of moving digits. Modes are directions, where the world has them.

    The direction of one digit is that in which its centroid moved. Several digits share a centroid:
    a particle is then in the mode of the right answer nearest to it, a combination of directions,
    by L2 distance of images in [0, 1]. A particle between answers counts for the nearest one too;
    `quality` says how far it is from it.
    """

    def __init__(self, world: MovingDigits, num_sets: int, seed: int):
        super().__init__(world, num_sets, seed)
        self.has_classes = world.directed

    @staticmethod
    def most_sets(world: MovingDigits) -> int:
        return max(1, len(world.digits.labels) // world.num_digits)

    def modes(self, samples, sets):
        if not self.world.directed:
            return None
        if self.world.num_digits > 1:
            assert self.answers is not None  # of every directed world
            return nearest_image(samples, self.answers[sets])[0]
        return nearest_direction(displacement(samples, self.cond[sets]), self.world.offsets)

    def measure(self, samples):
        if self.world.directed and self.world.num_digits > 1:
            assert self.answers is not None and self.world.mode_probabilities is not None
            return combination_metrics(samples, self.answers, self.world.mode_probabilities)
        return motion_metrics(
            samples,
            self.cond,
            offsets=self.world.offsets if self.world.directed else None,
            probabilities=self.world.mode_probabilities,
            undetermined=self.sequences.choices[:, -1],
            answers=self.answers,
            future=self.sequences.frames[:, -1],
        )


class ClassTask(_DigitTask):
    """Pictures of which each shows one of several classes; modes are the classes.

    The right answers are the pictures that the world knows, as likely as the condition makes them.
    A judge names the classes that is unlike anything that guides (`lab/judge.py`).

    Attributes:
        known: (M, H, W) or (M, 3, H, W) in [0, 1], the right answers of all sets
        known_labels: (M,) int64, their classes
        log_prior: (G, M), how likely they are in each set; None: all are equally likely
        recognise: tells the classes, or clusters, of noisy pictures
    """

    world: Any  # Centered, or what a subclass says
    has_classes = True
    recognise: NoisyClassifier
    log_prior: Tensor | None = None

    def __init__(self, world: Centered, num_sets: int, seed: int):
        super().__init__(world, num_sets, seed)
        self.known, self.known_labels = world.known()
        if isinstance(world, Halves):
            self.log_prior = world.log_likelihood(self.cond[:, 0]).log_softmax(-1)

    @cached_property
    def class_priors(self) -> Tensor:
        """(G, k) float64, the probability of each class in each set."""
        labels = self.known_labels
        k = len(self.world.class_names)
        if self.log_prior is None:
            return (torch.bincount(labels, minlength=k).double() / len(labels)).expand(
                self.num_sets, -1
            )
        shares = torch.zeros(self.num_sets, k, dtype=torch.float64)
        return shares.index_add_(1, labels, self.log_prior.double().exp())

    def wanted(self, sets: Tensor | slice) -> Tensor | None:
        """(G', k) bool, the classes that a diverse set has to show; None, without a condition: as
        many as there can be."""
        return None if self.log_prior is None else self.class_priors[sets] >= LEAST

    def bank(self, sets: Tensor, device: torch.device) -> Bank:
        """The right answers of some sets."""
        colours = self.world.answer_channels > 1
        images = to_model_range(as_planes(self.known, 0, colours)).to(device)
        prior = None if self.log_prior is None else self.log_prior[sets].to(device)
        k = len(self.world.class_names)
        return Bank(images, self.known_labels.to(device), k, prior)

    def exact_denoiser(self, sets, device, joint=False):
        weights = partial(joint_weights, wanted=self.wanted(sets)) if joint else None
        return self.bank(sets, device).denoiser(weights)

    def classes(self, sets, device):
        if self.recognise.of_clusters:
            names = [f"cluster {i}" for i in range(self.recognise.classes)]
            return Classes(
                names,
                lambda x, sigma: self.recognise(x.flatten(0, 1), sigma).unflatten(0, x.shape[:2]),
            )
        shares = self.class_priors.mean(0)
        ratio = torch.where(shares > 0, self.class_priors[sets] / shares, 0.0)
        given = ratio.log().float().to(device)

        def log_posterior(x: Tensor, sigma: Tensor) -> Tensor:
            log_p = self.recognise(x.flatten(0, 1), sigma).unflatten(0, x.shape[:2])
            return (log_p + given[:, None]).log_softmax(-1)

        return Classes(self.world.class_names, log_posterior, self.wanted(sets))

    @cached_property
    def judge(self) -> Judge:
        """What names the classes of samples."""
        return Judge.load()

    def modes(self, samples, sets):
        return self.judge(without_background(samples).flatten(0, 1)).view(samples.shape[:2])

    def measure(self, samples):
        modes = self.modes(samples, torch.arange(len(samples)))
        priors = self.class_priors
        metrics = mode_metrics(modes, priors.mean(0))
        metrics |= class_coverage(modes, priors) or {}
        nearest = nearest_in_class(
            samples.flatten(0, 1), modes.flatten(), self.known, self.known_labels
        )
        metrics |= dict(
            quality=None,
            nearest_in_class=mean_interval(nearest.view(modes.shape).mean(1), (0, math.inf)),
            iou_distance=mean_interval(iou_distance(samples), (0, 1)),
            pairwise_l2=mean_interval(pairwise_l2(samples), (0, math.inf)),
            **self._second_judge(samples, modes),
        )
        if self.log_prior is not None:  # classes are not alike in all sets
            weights = self.log_prior.exp()
            metrics |= share_metrics(modes, priors)
            metrics |= dict(
                modes_expected_iid=expected_modes_iid(priors, samples.shape[1]),
                equivalent_draws=None,
                count_dispersion=None,
                count_variance_ratio=None,
                ged=mean_interval(drawn_answers_ged(samples, self.known, weights), (0, 2)),
                energy_score=mean_interval(energy_score(samples, self.known, weights)),
            )
        return metrics, modes

    def _second_judge(self, samples: Tensor, modes: Tensor) -> dict[str, Any]:
        """What a network says: its confidence, and how often it agrees with the judge."""
        network = checkpoint.load_classifier("judge", self.device).fused()
        seen: list[Tensor] = []

        def classifier(frames: Tensor) -> Tensor:
            seen.append(judged(network.features, frames, self.device))
            return judged(network.out, seen[-1], self.device)

        classes, confidence = recognise(samples, classifier)
        agree = (classes == modes).double()
        return dict(
            confidence=mean_interval(confidence.mean(1), (0, 1)),
            agreement=mean_interval(agree.mean(1), (0, 1), step=1 / agree.shape[1]),
            **diversity_metrics(cosine_kernel(seen[0].view(*samples.shape[:2], -1))),
        )


class PicturesTask(ClassTask):
    """A user's pictures in classes, without a condition.

    The judge knows those for training; how often it is right says it of those for testing.
    """

    world: OwnPictures

    def __init__(self, world: OwnPictures, num_sets: int, seed: int):
        Task.__init__(self, world, num_sets, seed)
        self.cond = torch.zeros(num_sets, 0, *world.frame_shape)
        self.known, self.known_labels = world.known()

    @staticmethod
    def most_sets(world: OwnPictures) -> None:
        return None

    def truth(self):
        return {}

    @cached_property
    def judge(self) -> Judge:
        return Judge.fit(self.known, self.known_labels, len(self.world.class_names))

    def modes(self, samples, sets):
        return self.judge(samples.flatten(0, 1)).view(samples.shape[:2])

    def measure(self, samples):
        """As any task of classes, with `judge_accuracy`, the share of the test pictures that the
        judge recognises, and `test_nearest_in_class`, how far these are from known ones."""
        metrics, modes = super().measure(samples)
        images, labels = self.world.bank
        nearest = nearest_in_class(images, labels, self.known, self.known_labels)
        right = int((self.judge(images) == labels).sum())
        of_test = mean_interval(nearest, (0, math.inf))
        metrics |= dict(
            test_nearest_in_class={key: of_test[key] for key in ("mean", "ci95")},
            judge_accuracy=dict(mean=right / len(labels), ci95=wilson_interval(right, len(labels))),
        )
        return metrics, modes

    def _second_judge(self, samples, modes):
        return {}


class FramesTask(Task):
    """What follows on the user's own frames; each set has another window of the test sequences."""

    world: OwnFrames

    def __init__(self, world: OwnFrames, num_sets: int, seed: int):
        super().__init__(world, num_sets, seed)
        if not world.num_cond_frames:
            self.cond = torch.zeros(num_sets, 0, *world.frame_shape)
            return
        if world.unlabelled:
            self.which = torch.arange(num_sets)  # in the order of the files
            self.cond = world.given(self.which)
            return
        self.which = _shuffled(len(world), num_sets, seed)
        self.sequences = world.windows(num_sets, set_generator(seed, 0), which=self.which)
        self.cond = world.given(self.which)
        self.answers = as_images(world.right_answers(self.which), world.label_classes)

    @staticmethod
    def most_sets(world: OwnFrames) -> int | None:
        return len(world) if world.num_cond_frames else None

    @property
    def names(self) -> list[str]:
        """The name of each set's sequence in the files."""
        return [self.world.names[i] for i in self.which.tolist()]

    def priors(self, sets):
        return self.world.answer_probabilities(self.which[sets])

    def truth(self):
        if self.answers is None:
            return {}
        counts = self.world.counts[self.which]
        return dict(answers=self.answers, answers_each=counts)

    def measure(self, samples):
        classes = self.world.label_classes
        if self.answers is None:
            return spread_metrics(samples, classes), None
        priors = self.world.answer_probabilities(self.which)
        masks = self.world.answer_levels.kind == "mask"
        return answer_metrics(samples, self.answers, priors, classes, masks), None


class MixtureTask(Task):
    """Points of a mixture of Gaussians in the plane. Modes are the Gaussians."""

    world: Mixture

    def __init__(self, world: Mixture, num_sets: int, seed: int):
        super().__init__(world, num_sets, seed)
        self.cond = torch.zeros(num_sets, 0, *world.frame_shape)

    def exact_denoiser(self, sets, device, joint=False):
        centres = self.world.centres.to(device).view(1, -1, 1, 1, 2)
        centres = centres.expand(len(sets), -1, -1, -1, -1)
        return exact_denoiser(centres, sd=self.world.sd, joint=joint)

    def to_samples(self, x):
        return x[:, :, 0].cpu()

    def to_model(self, samples, device):
        return samples[:, :, None].to(device)

    def _nearest(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        centres = self.world.centres
        # Beyond half the way to the next centre a point belongs to none.
        half_way = float((centres[0] - centres[1]).norm() / 2)
        return mixture_modes(samples.flatten(2), centres, within=half_way)

    def modes(self, samples, sets):
        return self._nearest(samples)[0]

    def measure(self, samples):
        modes, distance = self._nearest(samples)
        metrics = mode_metrics(modes, self.world.mode_probabilities)
        inside = modes >= 0
        centre = self.world.centres[modes[inside]]
        outwards = centre / centre.norm(dim=-1, keepdim=True)
        off = (samples.flatten(2)[inside] - centre) / self.world.sd
        radial = (off * outwards).sum(-1)
        metrics |= dict(
            quality=None,
            displacement=float(radial.mean()),
            spread_inside=float(off.square().sum(-1).mean().sub(radial.mean() ** 2).div(2).sqrt()),
            within_3_sd=float((distance <= 3 * self.world.sd).double().mean()),
            largest_distance_sd=float(distance.max() / self.world.sd),
        )
        return metrics, modes


def kind_of(world: Any) -> type[Task]:
    """The class of the task that a world offers."""
    if isinstance(world, Mixture):
        return MixtureTask
    if isinstance(world, OwnPictures) and world.class_names:
        return PicturesTask
    if isinstance(world, OwnFrames):
        return FramesTask
    return ClassTask if isinstance(world, Centered) else NextFrame


def _shuffled(total: int, number: int, seed: int) -> Tensor:
    """Indices (number,) int64 below `total` in the seed's order, repeated after `total` of them."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[torch.arange(number) % total]
