"""Synthetic MovingMNIST worlds whose correct answers can be counted, and the base class of worlds.

A world of moving digits makes random choices on the way: which direction to jump in, or which
velocity to leave a wall with. Because the world makes the choices itself, the set of correct next
frames is known.

    centered        the digit rests in the middle; the modes are the ten classes
    halves          the upper half of a digit in noise, then the digit; the modes are its classes
    free            constant velocity; a wall reflects it or gives it a new one
    circle_jumping  even frames: centre; odd frames: one of k offsets, each digit its own
    horizontal      2 px per frame along the middle row; a new direction at the centre

Everything is a batch on one device, and every draw comes from an explicit `torch.Generator`. Frames
are float32 in [0, 1]; positions are (y, x) in pixels of a digit's top left corner.

MovingMNIST: Srivastava et al. 2015, arXiv 1502.04681. Stochastic walls: Denton & Fergus 2018, arXiv
1802.07687.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diverse_sampling.denoiser import to_unit_range

# (dy, dx) in pixels, in the order in which `num_directions` takes them.
DIRECTIONS = ((0, 4), (0, -4), (4, 0), (-4, 0), (4, 4), (4, -4), (-4, 4), (-4, -4))
HORIZONTAL_STEP = 2  # px per frame
MAX_VELOCITY = 4  # px per frame and axis, in world `free`
NUM_CLASSES = 10
MOST_ANSWERS = 4096  # to one window; more are not counted, and would not fit into memory


@dataclass(frozen=True)
class Digits:
    """The digit images of one split.

    Arguments:
        images: (M, S, S) float32 in [0, 1]
        labels: (M,) int64, the class of each digit
        source: where they come from, "mnist" or "embedded"
    """

    images: Tensor
    labels: Tensor
    source: str

    def to(self, device: torch.device | str) -> Digits:
        """The same digits on `device`."""
        return Digits(self.images.to(device), self.labels.to(device), self.source)

    def keep(self, classes: Sequence[int]) -> Digits:
        """Only the digits of these classes. Raises ValueError if none is left."""
        mask = torch.isin(self.labels, torch.as_tensor(classes, device=self.labels.device))
        if not mask.any():
            raise ValueError(
                f"digit_classes: {list(classes)} leaves no digit; accepted: classes from 0 to 9"
            )
        return Digits(self.images[mask], self.labels[mask], self.source)

    def mixed_with(self, other: Digits) -> Digits:
        """Both banks, the smaller one repeated until each makes about half of the draws."""
        banks = (self, other)
        largest = max(len(bank.labels) for bank in banks)
        images = []
        labels = []
        for bank in banks:
            times = round(largest / len(bank.labels))
            images.append(bank.images.repeat(times, 1, 1))
            labels.append(bank.labels.repeat(times))
        return Digits(torch.cat(images), torch.cat(labels), f"{self.source}+{other.source}")

    def centred(self, image_size: int) -> Tensor:
        """All digits as world `centered` shows them: (M, image_size, image_size) in [0, 1]."""
        room = image_size - self.images.shape[-1]
        before = room // 2
        after = room - before
        return F.pad(self.images, (before, after, before, after))


@dataclass(frozen=True)
class Sequences:
    """N sequences of T frames and what is known of them.

    Arguments:
        frames: (N, T, H, W) float32 in [0, 1]; where frames of a user's files have several
            channels, these follow each other along T
        labels: (N, K) int64, the class of each of the K digits
        positions: (N, T, K, 2) int64, (y, x) of each digit's top left corner, px
        choices: (N, T) bool, whether frame t is not determined by the frames before it
        which: (N, K) int64, the index of each digit in its bank; of a point that of its Gaussian,
            of a user's frames that of their window
    """

    frames: Tensor
    labels: Tensor
    positions: Tensor
    choices: Tensor
    which: Tensor

    @staticmethod
    def cat(parts: Sequence[Sequences]) -> Sequences:
        """All sequences of `parts` in one batch; the parts agree in T, K, H and W."""
        names = [field.name for field in fields(Sequences)]
        return Sequences(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def split(self, cond_channels: int, answer_channels: int = 1) -> tuple[Tensor, Tensor]:
        """The frames just before the last one, (N, cond_channels, H, W), and the last one,
        (N, answer_channels, H, W), both in [0, 1]. A frame of digits has one channel."""
        end = self.frames.shape[1] - answer_channels
        return self.frames[:, end - cond_channels : end], self.frames[:, end:]


class World:
    """What a network is trained on and what a set is asked for: the base class of all worlds.

    `data_loader.load_world` makes a world from settings.

    Attributes:
        dataset: the value of the setting `dataset`
        source: where its digits or frames come from; None where there are none
        frame_shape: (height, width) of a frame, px
        num_cond_frames: conditioning frames of a window (0: unconditional)
        cond_channels: channels of all conditioning frames of a window together
        num_digits: digits in a frame, the K of `Sequences`
    """

    dataset: str
    source: str | None = None
    frame_shape: tuple[int, int]
    num_cond_frames: int
    cond_channels: int
    num_digits = 1

    @property
    def answer_channels(self) -> int:
        """Channels of the last frame of a window, which is generated."""
        return 1

    @property
    def label_classes(self) -> int:
        """Classes of the answers' labels, a channel each; 0 for masks, grey levels and colours."""
        return 0

    @property
    def directed(self) -> bool:
        """Whether the modes are directions, or combinations of them, in which digits move on."""
        return False

    @property
    def modes_total(self) -> int | None:
        """Number of modes of the answers to one window, None where they are not counted."""
        return None

    @property
    def mode_probabilities(self) -> Tensor | None:
        """(modes,) float64, the prior of each mode or answer; None where they are a continuum."""
        return None

    def to(self, device: torch.device | str) -> World:
        """Move what the world draws from to `device`; returns the world itself."""
        return self

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """Draw n windows of num_cond_frames + 1 frames, on the generator's device.

        `which` picks the digits, Gaussians or windows by index; without it they are drawn too.
        """
        raise NotImplementedError

    def sequences(self, n: int, generator: torch.Generator) -> Sequences:
        """Draw n whole sequences, on the generator's device; windows where there are no others."""
        return self.windows(n, generator)


def render(images: Tensor, positions: Tensor, image_size: int) -> Tensor:
    """Draw digits into empty frames; where digits overlap, the brighter pixel is kept.

    Arguments:
        images: (N, K, S, S) in [0, 1]
        positions: (N, T, K, 2) int64 in px, with every digit inside the frame
        image_size: side of a frame, px

    Returns (N, T, image_size, image_size) in [0, 1].
    """
    N, T, K, _ = positions.shape
    S = images.shape[-1]
    axis = torch.arange(S, device=images.device)
    within = (axis[:, None] * image_size + axis).reshape(-1)  # (S*S,)
    corner = positions[..., 0] * image_size + positions[..., 1]  # (N, T, K)
    frames = None
    for k in range(K):
        canvas = images.new_zeros(N * T, image_size * image_size)
        index = corner[:, :, k].reshape(-1, 1) + within  # (N*T, S*S)
        pixels = images[:, k].reshape(N, 1, -1).expand(N, T, -1).reshape(N * T, -1)
        canvas.scatter_(1, index, pixels)
        frames = canvas if frames is None else torch.maximum(frames, canvas)
    assert frames is not None  # K > 0
    return frames.view(N, T, image_size, image_size)


def random_integers(
    low: int, high: int, size: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Uniform int64 numbers from `low` to `high`, both included, on the generator's device."""
    return torch.randint(low, high + 1, size, generator=generator, device=generator.device)


class MovingDigits(World):
    """Digits of a bank that move through frames: the base class of the four worlds of digits.

    A subclass states the motion in `paths`, and its modes.

    Arguments:
        digits: the bank that digits are drawn from; their side is the `digit_size`
        seq_len: frames in a sequence
        num_cond_frames: conditioning frames of a window (0: unconditional)
        num_digits: digits in a frame, K
        image_size: side of a frame, px
    """

    def __init__(
        self,
        digits: Digits,
        *,
        seq_len: int,
        num_cond_frames: int,
        num_digits: int,
        image_size: int,
    ):
        self.digits = digits
        self.source = digits.source
        self.frame_shape = (image_size, image_size)
        self.seq_len = seq_len
        self.num_cond_frames = self.cond_channels = num_cond_frames
        self.num_digits = num_digits
        self.image_size = image_size
        self.digit_size = digits.images.shape[-1]
        self.room = image_size - self.digit_size  # largest coordinate of a corner
        self.centre = self.room // 2

    @property
    def offsets(self) -> Tensor:
        """(k, 2) int64, displacements (dy, dx) in px of the directions of a directed world."""
        raise ValueError(f"dataset: {self.dataset} has no countable directions")

    def to(self, device: torch.device | str) -> MovingDigits:
        self.digits = self.digits.to(device)
        return self

    # ------------------------------------------------------------ motion
    def paths(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The motion of one digit in n sequences.

        Returns positions (n, T, 2) int64 in px, and choices (n, T) bool: whether the position is
        not determined by those before it.
        """
        raise NotImplementedError

    def preferred_ends(self, choices: Tensor) -> Tensor:
        """Frames that a window had better end with, (n, T) bool, given the choices (n, T)."""
        return torch.zeros_like(choices)

    def motion(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions (n, T, K, 2) of the digits of n sequences, and choices (n, T) of any digit."""
        positions, choices = zip(*(self.paths(n, generator) for _ in range(self.num_digits)))
        return torch.stack(positions, 2), torch.stack(choices).any(0)

    # ------------------------------------------------------------ batches
    def _drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, K) int64, digits drawn from the bank."""
        size = (n, self.num_digits)
        return random_integers(0, len(self.digits.labels) - 1, size, generator)

    def _shown(self, which: Tensor, positions: Tensor, choices: Tensor) -> Sequences:
        """The sequences of digits `which` (N, K) at positions (N, T, K, 2), choices (N, T)."""
        frames = render(self.digits.images[which], positions, self.image_size)
        return Sequences(frames, self.digits.labels[which], positions, choices, which)

    def sequences(self, n: int, generator: torch.Generator) -> Sequences:
        """Draw n whole sequences. The digits must be on the generator's device."""
        return self._shown(self._drawn(n, generator), *self.motion(n, generator))

    def windows(
        self,
        n: int,
        generator: torch.Generator,
        *,
        which: Tensor | None = None,
        at_choice: bool = False,
    ) -> Sequences:
        """Draw n windows of T = num_cond_frames + 1 frames.

        Each is cut at a random place of its own sequence. The digits must be on the generator's
        device.

        Arguments:
            n: number of windows
            generator: where everything random comes from
            which: (n, num_digits) int64, indices of the digits; None: they are drawn
            at_choice: the last frame is one that the others do not determine, in sequences that
                have such a frame late enough
        """
        T = self.num_cond_frames + 1
        if which is None:
            which = self._drawn(n, generator)
        positions, choices = self.motion(n, generator)
        # Among the places that end well, or else among all, the highest random score decides.
        starts = self.seq_len - T + 1
        score = torch.rand(n, starts, generator=generator, device=generator.device)
        ends_well = choices if at_choice else self.preferred_ends(choices)
        start = (score + ends_well[:, T - 1 :].float()).argmax(1)  # (n,)
        rows = torch.arange(n, device=start.device)[:, None]
        columns = start[:, None] + torch.arange(T, device=start.device)  # (n, T)
        return self._shown(which, positions[rows, columns], choices[rows, columns])

    def futures(self, batch: Sequences) -> Tensor:
        """Every frame that could have been the last one, for windows that end at a choice.

        Each of the K digits goes in any of the k directions of `offsets`: (N, k^K, H, W), in the
        order of `itertools.product`, the direction of the last digit changing fastest. Raises
        ValueError for a world without directions.
        """
        offsets = self.offsets
        last = batch.positions[:, -2]  # (N, K, 2), where the digits are before they move on
        choices = list(itertools.product(range(len(offsets)), repeat=self.num_digits))
        moves = offsets[torch.tensor(choices)].to(last.device)  # (k^K, K, 2)
        images = self.digits.images[batch.which]
        return render(images, last[:, None] + moves, self.image_size)


class Centered(MovingDigits):
    """World `centered`: each digit rests in the middle, and the modes are the ten classes.

    Arguments:
        training: the digits for training, which count as the right answers
        others: as in `MovingDigits`
    """

    dataset = "centered"
    class_names = [str(digit) for digit in range(NUM_CLASSES)]

    def __init__(self, digits: Digits, *, training: Digits, **others: int):
        super().__init__(digits, **others)
        self.training = training

    def known(self) -> tuple[Tensor, Tensor]:
        """The pictures that count as right answers, (M, H, W) in [0, 1], and their classes (M,)
        int64."""
        return self.training.centred(self.image_size), self.training.labels

    @property
    def modes_total(self) -> int:
        """The number of digit classes."""
        return NUM_CLASSES

    @property
    def mode_probabilities(self) -> Tensor:
        """(10,) float64, the share of each class in the bank."""
        labels = self.digits.labels
        return torch.bincount(labels, minlength=NUM_CLASSES).double() / len(labels)

    def paths(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The centre in every frame."""
        device = generator.device
        positions = torch.full((n, self.seq_len, 2), self.centre, device=device)
        choices = torch.zeros(n, self.seq_len, dtype=torch.bool, device=device)
        return positions, choices


class Halves(Centered):
    """World `halves`: the upper half of a digit is seen through noise, then the whole digit.

    With noise of standard deviation NOISE, more digits than one may follow: how likely each digit
    of a bank is, and with it each class, is known for every condition (`log_likelihood`).
    """

    dataset = "halves"
    NOISE = 0.5  # standard deviation, of pixels in [0, 1]

    @property
    def seen(self) -> tuple[slice, slice]:
        """The rows and the columns of a digit that are seen."""
        return slice(self.digit_size // 2), slice(self.digit_size)

    @property
    def _placed(self) -> tuple[slice, slice]:
        """The same in a frame, in whose middle the digit stands."""
        rows, columns = (slice(self.centre, self.centre + part.stop) for part in self.seen)
        return rows, columns

    def windows(
        self,
        n: int,
        generator: torch.Generator,
        *,
        which: Tensor | None = None,
        at_choice: bool = False,
    ) -> Sequences:
        """Draw n windows of two frames; the noise in the first one leaves [0, 1]."""
        batch = super().windows(n, generator, which=which, at_choice=at_choice)
        rows, columns = self._placed
        half = batch.frames[:, 0, rows, columns]
        noise = torch.randn(half.shape, generator=generator, device=generator.device)
        frames = batch.frames.clone()
        frames[:, 0] = 0
        frames[:, 0, rows, columns] = half + self.NOISE * noise
        return replace(batch, frames=frames)

    def sequences(self, n: int, generator: torch.Generator) -> Sequences:
        """Windows: a sequence has two frames."""
        return self.windows(n, generator)

    def log_likelihood(self, cond: Tensor) -> Tensor:
        """ln p(condition | picture) of each picture that is `known`, up to a constant.

        cond (G, H, W), the first frames of windows -> (G, M).
        """
        rows, columns = self._placed
        seen = cond[:, rows, columns].flatten(1)
        rows, columns = self.seen
        known = self.training.images[:, rows, columns].flatten(1)
        return -torch.cdist(seen, known).square() / (2 * self.NOISE**2)


class Directed(MovingDigits):
    """The base class of worlds in which a digit moves on in one of k directions.

    The modes are the directions; of several digits, which choose independently, their k^K
    combinations in the order of `futures`. More than MOST_ANSWERS are not counted.

    Arguments:
        p: probability of the first direction, the others share the rest; None: all are equal
        others: as in `MovingDigits`
    """

    def __init__(self, digits: Digits, *, p: float | None, **others: int):
        super().__init__(digits, **others)
        self.p = p

    @property
    def directed(self) -> bool:
        """Whether the combinations of directions are few enough to be counted."""
        return self.num_digits * math.log2(len(self.offsets)) <= math.log2(MOST_ANSWERS)

    @property
    def modes_total(self) -> int | None:
        """The number of directions; of several digits, k^K. None where they are not counted."""
        return len(self.offsets) ** self.num_digits if self.directed else None

    @property
    def direction_probabilities(self) -> Tensor:
        """(k,) float64, the prior of each direction of one digit, in the order of `offsets`."""
        k = len(self.offsets)
        first = 1 / k if self.p is None else self.p
        return torch.tensor([first] + [(1 - first) / (k - 1)] * (k - 1), dtype=torch.float64)

    @property
    def mode_probabilities(self) -> Tensor | None:
        """(k^K,) float64, the prior of each mode, in the order of `futures`. None where they are
        not counted."""
        if not self.directed:
            return None
        return reduce(torch.kron, [self.direction_probabilities] * self.num_digits)


class CircleJumping(Directed):
    """World `circle_jumping`: the centre in even frames, one of k offsets from it in odd frames.

    Several digits all start at the centre and choose independently, so that k^K frames are right.

    Arguments:
        num_directions: k, which is 2, 4 or 8
        p: probability of the first direction, the others share the rest; None: all are equal
        others: as in `MovingDigits`
    """

    dataset = "circle_jumping"

    def __init__(self, digits: Digits, *, num_directions: int, p: float | None, **others: int):
        super().__init__(digits, p=p, **others)
        self.num_directions = num_directions

    @property
    def offsets(self) -> Tensor:
        """(k, 2) int64, displacements (dy, dx) in px."""
        return torch.tensor(DIRECTIONS[: self.num_directions])

    def paths(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Jumps to random offsets, each frame's drawn independently."""
        device = generator.device
        positions = torch.full((n, self.seq_len, 2), self.centre, device=device)
        choices = torch.zeros(n, self.seq_len, dtype=torch.bool, device=device)
        odd = slice(1, None, 2)
        jumps = positions[:, odd].shape[1]
        weights = self.direction_probabilities.float().to(device)
        drawn = torch.multinomial(weights, n * jumps, replacement=True, generator=generator)
        positions[:, odd] += self.offsets.to(device)[drawn.view(n, jumps)]
        choices[:, odd] = True
        return positions, choices

    def preferred_ends(self, choices: Tensor) -> Tensor:
        """Odd frames, so that the last conditioning frame shows the digit in the centre."""
        odd = torch.arange(choices.shape[1], device=choices.device) % 2 == 1
        return odd.expand_as(choices)


class Horizontal(Directed):
    """World `horizontal`: 2 px per frame along the middle row; borders reflect, and a digit that
    leaves the centre draws its direction anew.

    Several digits reach the centre in different frames, and a choice is rarely one of all of them:
    only the directions of one digit are counted.

    Arguments:
        p: probability of going right; None: 0.5
        end_at_choice: windows end right after a direction was drawn
        others: as in `MovingDigits`
    """

    dataset = "horizontal"

    def __init__(self, digits: Digits, *, p: float | None, end_at_choice: bool, **others: int):
        super().__init__(digits, p=p, **others)
        self.end_at_choice = end_at_choice

    @property
    def directed(self) -> bool:
        """Whether there is one digit."""
        return self.num_digits == 1

    @property
    def offsets(self) -> Tensor:
        """(2, 2) int64, displacements (dy, dx) in px: right, left."""
        return torch.tensor([[0, HORIZONTAL_STEP], [0, -HORIZONTAL_STEP]])

    def paths(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Steps along the middle row from a random column in a random direction."""
        device = generator.device
        p = 0.5 if self.p is None else self.p
        reach = self.centre // HORIZONTAL_STEP  # steps from the centre to a border
        step = random_integers(-reach, reach, (n,), generator)  # columns, in steps from the centre
        direction = random_integers(0, 1, (n,), generator) * 2 - 1  # 1: right, -1: left
        steps = [step]
        choices = [torch.zeros(n, dtype=torch.bool, device=device)]
        for _ in range(self.seq_len - 1):
            at_centre = step == 0
            right = torch.rand(n, generator=generator, device=device) < p
            direction = torch.where(at_centre, right.long() * 2 - 1, direction)
            outside = (step + direction).abs() > reach
            direction = torch.where(outside, -direction, direction)
            step = step + direction
            steps.append(step)
            choices.append(at_centre)
        columns = self.centre + HORIZONTAL_STEP * torch.stack(steps, 1)  # (n, T) px
        rows = torch.full_like(columns, self.centre)
        return torch.stack([rows, columns], -1), torch.stack(choices, 1)

    def preferred_ends(self, choices: Tensor) -> Tensor:
        """Frames right after a drawn direction, where `end_at_choice` asks for them."""
        return choices if self.end_at_choice else torch.zeros_like(choices)


class Free(MovingDigits):
    """World `free`: constant velocity between walls, of up to 4 px per frame along each axis.

    Arguments:
        deterministic: walls reflect; otherwise a digit stops at a wall and leaves it with a new
            random velocity
        others: as in `MovingDigits`
    """

    dataset = "free"

    def __init__(self, digits: Digits, *, deterministic: bool, **others: int):
        super().__init__(digits, **others)
        self.deterministic = deterministic

    def paths(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Straight lines between walls, from a random corner with a random velocity."""
        device = generator.device
        position = random_integers(0, self.room, (n, 2), generator)
        velocity = random_integers(-MAX_VELOCITY, MAX_VELOCITY, (n, 2), generator)
        positions = [position]
        hit = torch.zeros(n, dtype=torch.bool, device=device)  # whether a new velocity was drawn
        choices = [hit]
        for _ in range(self.seq_len - 1):
            choices.append(hit)
            position = position + velocity
            if self.deterministic:
                position, velocity = self._reflected(position, velocity)
            else:
                position, velocity, hit = self._released(position, velocity, generator)
            positions.append(position)
        return torch.stack(positions, 1), torch.stack(choices, 1)

    def _reflected(self, position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities (n, 2) after walls have reflected what moved beyond them."""
        low = position < 0
        high = position > self.room
        velocity = torch.where(low | high, -velocity, velocity)
        position = torch.where(low, -position, position)
        position = torch.where(high, 2 * self.room - position, position)
        return position, velocity

    def _released(
        self, position: Tensor, velocity: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions stopped at walls, velocities (n, 2) of which those at a wall are new and point
        away from it, and whether a digit is at a wall, (n,) bool."""
        low = position < 0
        high = position > self.room
        hit = (low | high).any(1)
        along = random_integers(-MAX_VELOCITY, MAX_VELOCITY, tuple(velocity.shape), generator)
        away = random_integers(1, MAX_VELOCITY, tuple(velocity.shape), generator)
        fresh = torch.where(low, away, torch.where(high, -away, along))
        velocity = torch.where(hit[:, None], fresh, velocity)
        return position.clamp(0, self.room), velocity, hit


class Mixture(World):
    """Ten equal Gaussians on a circle in the plane, at the scale of images in [-1, 1].

    The synthetic experiment of particle guidance (Corso et al. 2023, arXiv 2310.13102, section
    5.1). A point is a frame of 1 x 2 pixels; as in every world, frames hold it in the unit range,
    `denoiser.to_model_range` gives the point in the plane.
    """

    dataset = "mixture"
    frame_shape = (1, 2)
    num_cond_frames = cond_channels = 0
    modes_total = 10
    radius = 1.0
    sd = 0.05

    @property
    def centres(self) -> Tensor:
        """(10, 2) float32, the means of the Gaussians."""
        angle = 2 * torch.pi * torch.arange(self.modes_total) / self.modes_total
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def mode_probabilities(self) -> Tensor:
        """(10,) float64, all equal."""
        return torch.full((self.modes_total,), 1 / self.modes_total, dtype=torch.float64)

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """Draw n points, frames (n, 1, 1, 2), labelled with their Gaussian.

        `which` (n,) picks the Gaussians; without it they are drawn too.
        """
        device = generator.device
        if which is None:
            which = random_integers(0, self.modes_total - 1, (n,), generator)
        noise = torch.randn(n, 2, generator=generator, device=device)
        points = self.centres.to(device)[which] + self.sd * noise
        return Sequences(
            to_unit_range(points)[:, None, None],
            labels=which[:, None],
            positions=torch.zeros(n, 1, 1, 2, dtype=torch.int64, device=device),
            choices=torch.ones(n, 1, dtype=torch.bool, device=device),
            which=which[:, None],
        )
