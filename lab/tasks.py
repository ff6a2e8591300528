"""Tasks: what sets are asked, which answers are right, and how sets are measured.

    NextFrame            the frame that follows on the given ones, in a world of digits
    UnconditionalDigits  an image of a digit, without a condition; a classifier names the digit
    FramesTask           the frame or mask that follows on frames from the user's files
    MixtureTask          points in the plane, from a mixture of ten Gaussians

Samples are (G, B, H, W) on the CPU: G sets of B particles. Images lie in [0, 1] up to overshoot; a
point of the plane is an "image" of 1 x 2 pixels, its coordinates. A user's frames may be in colour,
with an axis of 3 before H, and answers may be class labels, uint8 (`worlds/channels.py`). A mode is
one of the answers between which a world chooses, such as a direction or a digit class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser, to_model_range, to_unit_range
from diverse_sampling.exact import exact_denoiser
from diverse_sampling.noise import set_generator
from lab import checkpoint
from lab.classifier import Classifier, judged
from lab.metrics import (
    answer_metrics,
    combination_metrics,
    cosine_kernel,
    displacement,
    diversity_metrics,
    iou_distance,
    mean_interval,
    mixture_modes,
    mode_metrics,
    motion_metrics,
    nearest_direction,
    nearest_image,
    pairwise_l2,
    recognise,
    spread_metrics,
)
from worlds.channels import as_images, as_planes, mixed, one_hot
from worlds.moving_digits import Mixture, MovingDigits, Sequences, World
from worlds.own_data import OwnFrames


class Task:
    """The conditions of G sets, their right answers, and the metrics of what was sampled.

    Set g always has the same condition: it depends on the seed and on g, not on the other sets.

    Arguments:
        world: where conditions and right answers come from
        num_sets: G
        seed: the seed of the run

    Attributes:
        device: where a network that judges samples computes
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
            raise ValueError("denoiser: got 'exact'; accepted: trained where answers are unknown")
        answers = self.answers[sets]
        priors = self.priors(sets)
        if joint:  # the optimum is one of the answers that can be
            possible = priors.view(-1, priors.shape[-1]).any(0)
            answers, priors = answers[:, possible], priors[..., possible]
        images = self.to_model(answers, device)  # (G', k, C, H, W)
        log_prior = priors.log().float().to(device)
        return exact_denoiser(images, log_prior, joint=joint)

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
        )


class UnconditionalDigits(_DigitTask):
    """Images of digits without a condition. Modes are the classes that a classifier recognises.

    The classifier that judges is never the one whose features guide.
    """

    def _judge(self) -> Classifier:
        return checkpoint.load_classifier("judge", self.device).fused()

    def modes(self, samples, sets):
        judge = self._judge()
        return recognise(samples, lambda frames: judged(judge, frames, self.device))[0]

    def measure(self, samples):
        judge = self._judge()
        seen: list[Tensor] = []

        def classifier(frames: Tensor) -> Tensor:
            seen.append(judged(judge.features, frames, self.device))
            return judged(judge.out, seen[-1], self.device)

        digits, confidence = recognise(samples, classifier)
        priors = self.world.mode_probabilities
        assert priors is not None  # every class of digits has one
        metrics = mode_metrics(digits, priors)
        metrics |= dict(
            quality=None,
            confidence=mean_interval(confidence.mean(1)),
            iou_distance=mean_interval(iou_distance(samples)),
            pairwise_l2=mean_interval(pairwise_l2(samples)),
        )
        metrics |= diversity_metrics(cosine_kernel(seen[0].view(*samples.shape[:2], -1)))
        return metrics, digits


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
        return answer_metrics(samples, self.answers, priors, classes), None


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
    if isinstance(world, OwnFrames):
        return FramesTask
    return NextFrame if world.num_cond_frames else UnconditionalDigits


def _shuffled(total: int, number: int, seed: int) -> Tensor:
    """Indices (number,) int64 below `total` in the seed's order, repeated after `total` of them."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[torch.arange(number) % total]
