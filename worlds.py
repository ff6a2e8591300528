"""Synthetic MovingMNIST worlds whose right answers can be counted.

A world moves one or more digits through a small frame and makes random choices on
the way: which direction to jump in, which velocity to leave a wall with. Because
the world makes the choices itself, the set of right next frames is known.

    centered        the digit rests in the middle; the modes are the ten classes
    free            constant velocity; a wall reflects it or gives it a new one
    circle_jumping  even frames: centre; odd frames: one of k offsets
    horizontal      2 px a frame along the middle row; a new direction at the centre

Everything is a batch on one device and every draw comes from an explicit
`torch.Generator`. Images are float32 in [0, 1], positions are (y, x) pixels of a
digit's top-left corner. MovingMNIST: Srivastava et al. 2015, arXiv 1502.04681;
the stochastic walls: Denton & Fergus 2018, arXiv 1802.07687.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

# (dy, dx) in pixels, in the order in which `num_directions` takes them.
DIRECTIONS = ((0, 4), (0, -4), (4, 0), (-4, 0), (4, 4), (4, -4), (-4, 4), (-4, -4))
HORIZONTAL_STEP = 2  # px per frame
MAX_VELOCITY = 4  # px per frame and axis, world `free`
MODES = {"centered": 10, "horizontal": 2, "free": None}  # circle_jumping: num_directions


@dataclass(frozen=True)
class Digits:
    """Digit images of one split: `images` (M, S, S) in [0, 1], `labels` (M,) int64,
    and `source`, "mnist" or "embedded"."""

    images: Tensor
    labels: Tensor
    source: str

    def to(self, device) -> Digits:
        """The same on `device`."""
        return Digits(self.images.to(device), self.labels.to(device), self.source)

    def keep(self, classes) -> Digits:
        """Only the digits of these classes. Raises ValueError if none is left."""
        mask = torch.isin(self.labels, torch.as_tensor(classes, device=self.labels.device))
        if not mask.any():
            raise ValueError(
                f"classes: {list(classes)} leaves no digit; accepted: classes from 0 to 9"
            )
        return Digits(self.images[mask], self.labels[mask], self.source)

    def mixed_with(self, other: Digits) -> Digits:
        """Both banks, the smaller one repeated until each makes about half of the draws."""
        banks = [self, other]
        most = max(len(bank.labels) for bank in banks)
        times = [round(most / len(bank.labels)) for bank in banks]
        return Digits(
            torch.cat([b.images.repeat(t, 1, 1) for b, t in zip(banks, times)]),
            torch.cat([b.labels.repeat(t) for b, t in zip(banks, times)]),
            "+".join(bank.source for bank in banks),
        )


@dataclass(frozen=True)
class Sequences:
    """N sequences of T frames and everything that is true of them.

    frames     (N, T, H, W)     float32 in [0, 1]
    labels     (N, K)           int64, class of each of the K digits
    positions  (N, T, K, 2)     int64, (y, x) of each digit's top-left corner, px
    choices    (N, T)           bool: frame t is not determined by those before it
    """

    frames: Tensor
    labels: Tensor
    positions: Tensor
    choices: Tensor

    @staticmethod
    def cat(parts: Sequence[Sequences]) -> Sequences:
        """All of them in a row; they agree in T, K, H and W."""
        return Sequences(
            *(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts)))
        )

    def __getitem__(self, rows: slice) -> Sequences:
        return Sequences(*(tensor[rows] for tensor in vars(self).values()))

    def split(self, num_cond_frames: int) -> tuple[Tensor, Tensor]:
        """(cond (N, num_cond_frames, H, W), target (N, 1, H, W)), both in [0, 1]:
        the last frame and those just before it."""
        end = self.frames.shape[1] - 1
        return self.frames[:, end - num_cond_frames : end], self.frames[:, end:]


def render(images: Tensor, positions: Tensor, image_size: int) -> Tensor:
    """Draw digits into empty frames; where digits overlap, the brighter one is seen.

    images (N, K, S, S) in [0, 1], positions (N, T, K, 2) int64 px with every digit
    inside the frame -> (N, T, image_size, image_size).
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
        canvas.scatter_(
            1, index, images[:, k].reshape(N, 1, -1).expand(N, T, -1).reshape(N * T, -1)
        )
        frames = canvas if frames is None else torch.maximum(frames, canvas)
    assert frames is not None  # K > 0
    return frames.view(N, T, image_size, image_size)


class World:
    """One of the four worlds over a bank of digits.

    dataset         "centered", "free", "circle_jumping" or "horizontal"
    seq_len         frames in a sequence
    num_cond_frames conditioning frames of a training window (0: unconditional)
    num_digits      digits in a frame
    image_size, digit_size   px
    num_directions  2, 4 or 8 (circle_jumping)
    p               probability of the first direction (circle_jumping; None: all
                    alike) or of going right (horizontal; None: 0.5)
    deterministic   `free`: walls reflect instead of giving a new velocity
    end_at_choice   `horizontal`: windows end right after a draw at the centre
    """

    def __init__(
        self,
        digits: Digits,
        *,
        dataset: str,
        seq_len: int,
        num_cond_frames: int,
        num_digits: int,
        image_size: int,
        digit_size: int,
        num_directions: int,
        p: float | None,
        deterministic: bool,
        end_at_choice: bool,
    ):
        self.digits = digits
        self.dataset, self.seq_len, self.num_cond_frames = dataset, seq_len, num_cond_frames
        self.num_digits, self.image_size, self.digit_size = num_digits, image_size, digit_size
        self.num_directions, self.p = num_directions, p
        self.deterministic, self.end_at_choice = deterministic, end_at_choice
        self.room = image_size - digit_size  # largest coordinate of a corner
        self.centre = self.room // 2

    @property
    def modes_total(self) -> int | None:
        """Number of right answers in a set, None where they are a continuum."""
        return self.num_directions if self.dataset == "circle_jumping" else MODES[self.dataset]

    @property
    def source(self) -> str:
        """Where its digits come from."""
        return self.digits.source

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(height, width), px."""
        return self.image_size, self.image_size

    @property
    def directed(self) -> bool:
        """Whether the modes are directions, `offsets`, in which a digit moves on."""
        return self.dataset in ("circle_jumping", "horizontal")

    @property
    def mode_probabilities(self) -> Tensor | None:
        """(modes_total,) prior of each mode, first direction (or right, or class 0) first."""
        k = self.modes_total
        if k is None:
            return None
        if self.dataset == "centered":
            return torch.bincount(self.digits.labels, minlength=k).double() / len(
                self.digits.labels
            )
        first = 1 / k if self.p is None else self.p
        return torch.tensor([first] + [(1 - first) / (k - 1)] * (k - 1), dtype=torch.float64)

    @property
    def offsets(self) -> Tensor:
        """(k, 2) int64 displacements (dy, dx) in px of the modes of a world of directions."""
        if self.dataset == "circle_jumping":
            return torch.tensor(DIRECTIONS[: self.num_directions])
        if self.dataset == "horizontal":
            return torch.tensor([[0, HORIZONTAL_STEP], [0, -HORIZONTAL_STEP]])
        raise ValueError(f"dataset: {self.dataset} has no countable directions")

    # ------------------------------------------------------------ motion
    def _motion(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(positions (n, T, K, 2), choices (n, T)) of n sequences."""
        paths, choices = zip(
            *(getattr(self, f"_{self.dataset}")(n, generator) for _ in range(self.num_digits))
        )
        return torch.stack(paths, 2), torch.stack(choices).any(0)

    def _randint(self, low: int, high: int, size: tuple, generator) -> Tensor:
        return torch.randint(low, high + 1, size, generator=generator, device=generator.device)

    def _centered(self, n, generator):
        device = generator.device
        return (
            torch.full((n, self.seq_len, 2), self.centre, device=device),
            torch.zeros(n, self.seq_len, dtype=torch.bool, device=device),
        )

    def _circle_jumping(self, n, generator):
        positions, choices = self._centered(n, generator)
        odd = slice(1, None, 2)
        jumps = positions[:, odd].shape[1]
        prior = self.mode_probabilities
        assert prior is not None  # only `free` has none
        weights = prior.float().to(generator.device)
        which = torch.multinomial(weights, n * jumps, replacement=True, generator=generator)
        positions[:, odd] += self.offsets.to(generator.device)[which].view(n, jumps, 2)
        choices[:, odd] = True
        return positions, choices

    def _horizontal(self, n, generator):
        device, centre, step = generator.device, self.centre, HORIZONTAL_STEP
        p = 0.5 if self.p is None else self.p
        reach = centre // step  # steps from the centre to a border
        x = self._randint(-reach, reach, (n,), generator)
        v = self._randint(0, 1, (n,), generator) * 2 - 1
        xs, drawn = [x], [torch.zeros(n, dtype=torch.bool, device=device)]
        for _ in range(self.seq_len - 1):
            at_centre = x == 0
            right = torch.rand(n, generator=generator, device=device) < p
            v = torch.where(at_centre, right.long() * 2 - 1, v)
            v = torch.where((x + v).abs() > reach, -v, v)
            x = x + v
            xs.append(x)
            drawn.append(at_centre)
        columns = centre + step * torch.stack(xs, 1)
        return torch.stack([torch.full_like(columns, centre), columns], -1), torch.stack(drawn, 1)

    def _free(self, n, generator):
        device, top = generator.device, self.room
        x = self._randint(0, top, (n, 2), generator)
        v = self._randint(-MAX_VELOCITY, MAX_VELOCITY, (n, 2), generator)
        xs, drawn = [x], [torch.zeros(n, dtype=torch.bool, device=device)]
        hit_before = drawn[0]
        for _ in range(self.seq_len - 1):
            x = x + v
            low, high = x < 0, x > top
            if self.deterministic:
                x = torch.where(low, -x, torch.where(high, 2 * top - x, x))
                v = torch.where(low | high, -v, v)
                hit = torch.zeros_like(hit_before)
            else:  # stop at the wall, then leave it with a new velocity
                x = x.clamp(0, top)
                hit = (low | high).any(1)
                along = self._randint(-MAX_VELOCITY, MAX_VELOCITY, (n, 2), generator)
                away = self._randint(1, MAX_VELOCITY, (n, 2), generator)
                fresh = torch.where(low, away, torch.where(high, -away, along))
                v = torch.where(hit[:, None], fresh, v)
            xs.append(x)
            drawn.append(hit_before)
            hit_before = hit
        return torch.stack(xs, 1), torch.stack(drawn, 1)

    # ------------------------------------------------------------ batches
    def _draw(self, n, generator, which):
        if which is None:
            which = self._randint(0, len(self.digits.labels) - 1, (n, self.num_digits), generator)
        return self.digits.images[which], self.digits.labels[which]

    def sequences(self, n: int, generator: torch.Generator) -> Sequences:
        """n whole sequences. The digits must be on the generator's device."""
        images, labels = self._draw(n, generator, None)
        positions, choices = self._motion(n, generator)
        return Sequences(render(images, positions, self.image_size), labels, positions, choices)

    def windows(
        self,
        n: int,
        generator: torch.Generator,
        *,
        at_choice: bool = False,
        which: Tensor | None = None,
    ) -> Sequences:
        """n training windows of num_cond_frames + 1 frames, each cut at a random place of
        its own sequence; with `at_choice` (or `end_at_choice`) the last frame is one that
        the others do not determine, where the sequence has such a frame late enough.
        `which` (n, num_digits) picks the digits, else they are drawn."""
        T = self.num_cond_frames + 1
        images, labels = self._draw(n, generator, which)
        positions, choices = self._motion(n, generator)
        score = torch.rand(n, self.seq_len - T + 1, generator=generator, device=generator.device)
        if at_choice or (self.end_at_choice and self.dataset == "horizontal"):
            score = score + choices[:, T - 1 :].float()
        elif self.dataset == "circle_jumping":  # conditioned on a centred digit: end on odd frames
            score = score + (torch.arange(T - 1, self.seq_len, device=score.device) % 2)
        start = score.argmax(1)  # (n,)
        rows = torch.arange(n, device=start.device)[:, None]
        cols = start[:, None] + torch.arange(T, device=start.device)  # (n, T)
        positions, choices = positions[rows, cols], choices[rows, cols]
        return Sequences(render(images, positions, self.image_size), labels, positions, choices)

    def futures(self, batch: Sequences) -> Tensor:
        """(N, k, H, W): every frame that could have been the last one, in the order of
        `offsets`. For windows of a world of directions with one digit that end at a choice."""
        T = batch.positions.shape[1]
        S, last = self.digit_size, batch.positions[:, -2, 0]  # (N, 2)
        rows = last[:, 0, None] + torch.arange(S, device=last.device)
        cols = last[:, 1, None] + torch.arange(S, device=last.device)
        n = torch.arange(len(last), device=last.device)
        digit = batch.frames[:, T - 2][n[:, None, None], rows[:, :, None], cols[:, None, :]]
        there = last[:, None] + self.offsets.to(last.device)  # (N, k, 2)
        return render(digit[:, None], there[:, :, None], self.image_size)


class Mixture:
    """Ten equal Gaussians on a circle in the plane, the synthetic experiment of particle guidance
    (Corso et al. 2023, section 5.1), at the scale of images in [-1, 1]."""

    dataset, modes_total, radius, sd, source, frame_shape = "mixture", 10, 1.0, 0.05, None, (1, 2)

    @property
    def centres(self) -> Tensor:
        """(10, 2) float32."""
        angle = 2 * torch.pi * torch.arange(self.modes_total) / self.modes_total
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def mode_probabilities(self) -> Tensor:
        """(10,) float64, all alike."""
        return torch.full((self.modes_total,), 1 / self.modes_total, dtype=torch.float64)
