"""Every setting, declared once.

A typed field is a key of YAML files, a flag with its help text, the check of its values, and a line
in the record of a run. The command lines share these groups. Precedence, weakest first: the
defaults here, the world that a checkpoint was trained in (evaluate.py) or the run that is continued
(train.py), `--config` files, flags.

A settings object never changes: what was given becomes final settings in lab/assemble.py and in
train.py. Nothing here imports torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections import abc
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Callable,
    Literal,
    Mapping,
    Optional,
    Sequence,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from diverse_sampling import method
from diverse_sampling.defaults import SIGMA_MIN
from diverse_sampling.errors import reject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import Self

T = TypeVar("T", bound="DataclassInstance")


# ---------------------------------------------------------------- what a setting accepts


@dataclass(frozen=True)
class Check:
    """What a value has to be beside its type: in words, and as a test."""

    accepted: str
    passes: Callable[[Any], bool]

    def words(self, everything: bool) -> str:
        """What is accepted."""
        return self.accepted


@dataclass(frozen=True)
class Choice:
    """The values that a setting accepts: those of --help, and more that --help_all adds."""

    names: Sequence[Any]
    more: Sequence[Any] = ()

    def words(self, everything: bool) -> str:
        """What is accepted, with everything or without what only --help_all adds."""
        more = self.more if everything or not self.more else ["and more"]
        return ", ".join(map(str, (*self.names, *more)))

    def passes(self, value: Any) -> bool:
        """Whether it is one of them."""
        return value in (*self.names, *self.more)


def _methods(flag: str) -> Choice:
    """The methods that a flag may name."""
    usual = method.names(flag, rivals=False)
    return Choice(usual, [name for name in method.names(flag) if name not in usual])


Count = Annotated[int, Check("a whole number from 1 to 1e9", lambda n: 0 < n <= 10**9)]
CountOrZero = Annotated[int, Check("a whole number from 0 to 1e9", lambda n: 0 <= n <= 10**9)]
Seed = Annotated[int, Check("a whole number >= 0 and < 2^63", lambda n: 0 <= n < 2**63)]
LogSigma = Annotated[float, Check("a number from -10 to 10", lambda x: -10 <= x <= 10)]
Sigma = Annotated[float, Check("a number from 1e-6 to 1e6", lambda x: 1e-6 <= x <= 1e6)]
Positive = Annotated[float, Check("a number > 0", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, Check("a number >= 0", lambda x: 0 <= x < math.inf)]
NonNegativeOrInf = Annotated[float, Check("a number >= 0 or inf", lambda x: x >= 0)]
ClosedUnitInterval = Annotated[float, Check("a number from 0 to 1", lambda x: 0 <= x <= 1)]
PATH = Check("text", lambda text: True)
PathText = Annotated[str, PATH]  # a leading ~ is the home folder, in files of settings too

UNCHECKED = {
    int: Check("a whole number", lambda n: True),
    float: Check("a number", math.isfinite),
    bool: Check("true, false", lambda value: True),
    str: Check("text", lambda text: True),
}


@dataclass(frozen=True)
class Setting:
    """One field of a settings group, and what it accepts.

    Arguments:
        name: of the field, the YAML key and the flag
        default: its value if nothing is given
        base: type of its values; of a list, of the items
        check: what these have to be beside that
        optional: whether null is accepted too
        listed: whether it is a list
        rare: whether --help leaves it to --help_all
    """

    name: str
    default: Any
    base: type
    check: Check | Choice
    optional: bool
    listed: bool
    rare: bool

    @classmethod
    def of(cls, declared: Field, hint: Any) -> Setting:
        """The setting that a field with this type declares."""
        optional = type(None) in get_args(hint)
        if optional:
            hint = get_args(hint)[0]
        listed = get_origin(hint) in (list, abc.Sequence)
        if listed:
            (hint,) = get_args(hint)
        check: Check | Choice
        if get_origin(hint) is Annotated:
            base, check = hint.__origin__, hint.__metadata__[0]
        elif get_origin(hint) is Literal:
            base, check = type(get_args(hint)[0]), Choice(get_args(hint))
        else:
            base, check = hint, UNCHECKED[hint]
        rare = "rare" in declared.metadata
        return cls(declared.name, declared.default, base, check, optional, listed, rare)

    def accepted(self, everything: bool = True) -> str:
        """What is accepted, in words, with everything or without what only --help_all adds."""
        each = "a list, 3,5 or [3,5], each " if self.listed else ""
        return f"{each}{self.check.words(everything)}{', or null' if self.optional else ''}"

    def read(self, value: Any) -> Any:
        """The value that YAML or the text of a flag stands for. Raises SettingError."""
        if self.optional and value in (None, "null"):
            return None
        try:
            if not self.listed:
                return self._read_one(value)
            items = _items(value) if isinstance(value, str) else value
            if isinstance(items, (list, tuple)):
                return [self._read_one(item) for item in items]
        except (ValueError, OverflowError):
            pass
        reject(self.name, value, self.accepted())

    def _read_one(self, value: Any) -> Any:
        if isinstance(value, str) and self.base is not str:
            value = _number_or_bool(value)
        if self.base is float and type(value) is int:
            value = float(value)
        elif self.base is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not self.base or not self.check.passes(value):
            raise ValueError
        return os.path.expanduser(str(value)) if self.check is PATH else value


def _number_or_bool(text: str) -> int | float | bool:
    """What a flag's text stands for, or YAML's: it takes 1e-3 for text. Raises ValueError."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return float(text)


def _items(text: str) -> list[str]:
    """The items of a list as it is typed: 3,5 or [3,5]."""
    text = text.strip()
    if text == "[]":
        return []
    return (text[1:-1] if text.startswith("[") and text.endswith("]") else text).split(",")


def declared(group: type) -> list[Setting]:
    """The settings of a group, in the order of its fields."""
    hints = get_type_hints(group, include_extras=True)
    return [Setting.of(f, hints[f.name]) for f in fields(group)]


def rare(default: Any) -> Any:
    """The default of a setting that --help leaves to --help_all."""
    return field(default=default, metadata=dict(rare=True))


# ---------------------------------------------------------------- groups

Dataset = Literal["centered", "halves", "free", "circle_jumping", "horizontal", "mixture", "frames"]


@dataclass(frozen=True)
class WorldSettings:
    """World"""

    dataset: Dataset = "circle_jumping"
    """the world: five worlds of digits; mixture, ten Gaussians in the plane (evaluate.py only);
    frames, your data"""
    frames: Optional[PathText] = None
    """dataset frames: an .npz or .npy file, or a directory of pictures or videos (worlds/files.py
    describes the layouts)"""
    data: Optional[str] = None
    """dataset frames: how to read them, such as "range: [-1000, 400], answers_are: mask"; overrides
    the data.yaml beside them (worlds/description.py has all keys; null: nothing)"""
    answers: Literal["given", "none"] = "given"
    """dataset frames: given, train on and compare with the answers in the files, or with the next
    frame if there are none; none, sample the frame after the last ones, ignoring any answers"""
    seq_len: Optional[Count] = None
    """frames in a sequence of moving digits (null: 1 for centered, 2 for halves and circle_jumping,
    else 16)"""
    num_cond_frames: Optional[CountOrZero] = None
    """conditioning frames, those before the generated one; 0 with dataset frames: each picture is
    a sample of its own, and its folder is its class (null: 0 for centered, 1 for halves,
    circle_jumping and frames, else 3)"""
    num_digits: Count = 1
    """digits in a frame"""
    image_size: Count = 32
    """side of a frame with digits, px"""
    digit_size: Count = rare(16)
    """side of a digit, px"""
    digit_classes: Optional[list[CountOrZero]] = None
    """digit classes to use, such as 3,5 (null: all ten)"""
    num_directions: Literal[2, 4, 8] = 8
    """circle_jumping: number of directions"""
    p: Optional[ClosedUnitInterval] = None
    """probability of the first direction; in horizontal, of right (null: all equal)"""
    deterministic: bool = True
    """free: a wall reflects the digit (true) or gives it a new random velocity (false)"""
    end_at_choice: bool = rare(False)
    """horizontal: training windows end right after a new direction was drawn"""

    def __post_init__(self):
        name = self.dataset
        conditioning = {"centered": 0, "halves": 1, "circle_jumping": 1, "frames": 1}.get(name, 3)
        length = {"centered": 1, "halves": 2, "circle_jumping": 2}.get(name, 16)
        for key, implied in dict(num_cond_frames=conditioning, seq_len=length).items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, implied)  # while it is built; it is frozen after that
        assert self.seq_len is not None and self.num_cond_frames is not None
        if self.seq_len <= self.num_cond_frames:
            reject("seq_len", self.seq_len, f"more than num_cond_frames = {self.num_cond_frames}")
        if (name == "frames") != (self.frames is not None):
            reject("frames", self.frames, "a path with dataset frames, and only there")
        if name == "frames" and self.num_cond_frames == 0 and self.answers != "given":
            reject("answers", self.answers, "given for pictures without a condition")
        if name != "frames" and self.data is not None:
            reject("data", self.data, "null in worlds other than frames")
        if self.digit_size > self.image_size - (8 if name == "circle_jumping" else 0):
            reject(
                "digit_size",
                self.digit_size,
                f"a size that leaves room to move in image_size = {self.image_size}",
            )
        digits = self.digit_classes
        if digits is not None and not (digits and set(digits) <= set(range(10))):
            reject("digit_classes", digits, "a list of digit classes from 0 to 9")
        if name == "circle_jumping" and self.num_cond_frames % 2 == 0 and self.num_cond_frames:
            reject(
                "num_cond_frames",
                self.num_cond_frames,
                "an odd number for circle_jumping, whose last conditioning frame is centred",
            )


@dataclass(frozen=True)
class DigitSettings:
    """Digits"""

    digits: Literal["auto", "mnist", "embedded", "both"] = "auto"
    """source of the digits: auto, MNIST if available, else embedded; embedded, the 1,797 that
    scikit-learn bundles; both, a mixture for training"""
    data_root: PathText = "data"
    """directory of torchvision's MNIST, which is downloaded there if it is missing"""
    download_timeout: Positive = rare(10.0)
    """seconds without an answer after which a download is given up"""


@dataclass(frozen=True)
class ModelSettings:
    """Model"""

    channels: Sequence[Count] = (64, 64, 128)
    """width at each resolution, finest first"""
    blocks: Count = 2
    """residual blocks per resolution"""
    attention: Sequence[CountOrZero] = (1,)
    """resolutions with self-attention, as indices into channels"""
    head_channels: Count = rare(64)
    """smallest number of channels of an attention head; heads share the width equally"""
    patch_size: Literal[1, 2, 4, 8] = 1
    """space-to-depth: side of the squares of pixels that become one position, px"""
    motion: CountOrZero = 0
    """largest shift per axis by which the network may translate the last conditioning frame, px
    (0: it generates every pixel)"""
    crop: bool = False
    """apply the network only to the box in which the training data has nonzero pixels; the rest
    of a frame is black"""
    dropout: ClosedUnitInterval = rare(0.0)
    """probability of dropout inside residual blocks"""
    class_labels: bool = rare(False)
    """condition on the digit class"""
    sigma_data: Optional[Positive] = rare(None)
    """standard deviation of the data in [-1, 1] (null: measured)"""

    @property
    def multiple(self) -> int:
        """Both sides of the network's input must be multiples of this, in pixels."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class OptimizationSettings:
    """Training"""

    target: Literal["drawn", "posterior"] = "drawn"
    """regression target of a noisy frame: drawn, the clean frame it was made from; posterior, the
    mean of the world's correct answers given the noisy frame, which has the same minimiser and a
    gradient with less variance (Xu et al. 2023, arXiv 2302.00670)"""
    teacher: Optional[PathText] = rare(None)
    """distil this network, a file that train.py wrote, into one that samples in few calls; model
    settings are to be those of the teacher (null: learn from frames)"""
    iterations: Count = 20000
    """number of updates"""
    batch_size: Count = 512
    """images per update, summed over all processes"""
    accumulate: Count = 1
    """parts into which a batch is split to save memory; their gradients are added"""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam: AdamW for all weights; muon: Muon for the hidden matrices and AdamW for the rest"""
    lr: Positive = 5e-4
    """learning rate of AdamW"""
    muon_lr: Positive = 0.02
    """learning rate of Muon"""
    weight_decay: NonNegative = rare(0.0)
    """decoupled weight decay, per update and unit of learning rate"""
    warmup: CountOrZero = 200
    """length of the linear warm-up of the learning rate, iterations"""
    lr_schedule: Literal["constant", "cosine"] = rare("cosine")
    """learning rate after the warm-up: constant, or a cosine that reaches 0 at the last
    iteration"""
    clip_grad: Positive = rare(1.0)
    """norm to which a larger gradient is scaled down"""
    ema: ClosedUnitInterval = 0.999
    """decay of the exponential moving average of the weights, per iteration"""
    p_mean: LogSigma = -1.2
    """mean of ln sigma in training"""
    p_std: Positive = 1.2
    """standard deviation of ln sigma in training"""
    augment: Optional[Literal["none", "flips", "dihedral", "dihedral_shifts"]] = None
    """dataset frames: one random transformation for all frames of a sequence and its answer; flips,
    along each axis; dihedral, flips and quarter turns; dihedral_shifts, small shifts too (null:
    flips for masks and grey answers, else none)"""
    log_every: Count = rare(50)
    """iterations between lines of metrics.jsonl and of tracking"""
    save_every: Count = rare(1000)
    """iterations between checkpoints"""
    sample_every: CountOrZero = 2000
    """iterations between sample sheets (0: only one at the end)"""
    resume: Optional[PathText] = None
    """directory of a run to continue"""

    def __post_init__(self):
        if self.p_std > 10:
            reject("p_std", self.p_std, "at most 10")


@dataclass(frozen=True)
class TaskSettings:
    """Evaluation"""

    task: Optional[Literal["conditional", "unconditional"]] = None
    """conditional: the next frame given the ones before; unconditional: a digit, or one
    of your pictures, without any condition (null: what the world offers)"""
    checkpoint: Optional[PathText] = None
    """trained network: a file that train.py wrote, or the name of an included one (null: the one
    included for the dataset)"""
    denoiser: Literal["trained", "exact"] = "trained"
    """trained: the network; exact: the posterior mean over the world's correct answers"""
    num_sets: Optional[Count] = 32
    """number of sets, each with a test digit of its own (null: one for each test condition, the
    default with answers none)"""
    batch_size: Count = 8
    """particles in a set"""
    rollout: Count = 1
    """dataset frames without answers: frames to sample one after the other, each particle going on
    from its own"""
    from_run: Optional[PathText] = None
    """directory of a run whose sets are kept, but for the particles that redraw names; settings
    that are not given are as in that run"""
    redraw: Optional[list[CountOrZero]] = None
    """from_run: particles of each set, numbered from 0, that are drawn again with new noise,
    repelled by those that are kept, such as 3 for particle_3"""

    def __post_init__(self):
        numbers = self.redraw
        if (numbers is None) != (self.from_run is None):
            reject("redraw", numbers, "numbers of particles with from_run, and only there")
        if numbers is None:
            return
        known = set(numbers) < set(range(self.batch_size))
        if not numbers or not known or len(set(numbers)) < len(numbers):
            last = self.batch_size - 1
            reject("redraw", numbers, f"different numbers from 0 to {last}, and not all of them")
        if self.rollout > 1:
            reject("rollout", self.rollout, "1 with redraw, which draws single frames")


@dataclass(frozen=True)
class SamplerSettings:
    """Sampler"""

    sampler: Optional[Literal["edm", "edm_noised", "window", "student"]] = None
    """edm: EDM's noise levels and steps (its algorithm 2); window: most calls between the noise
    levels at which it is decided what a sample shows, noise added back before each of them;
    edm_noised: edm with the noise of window; student: all noise renewed before each call of a
    network that returns samples, a student (null: student for a student, window if particle
    guidance acts and s_churn is 0, else edm)"""
    num_steps: Count = 22
    """steps of edm from sigma_max to 0; window makes as many network calls, 2 num_steps - 1;
    student: num_steps calls, 4 unless given"""
    price: Optional[Positive] = None
    """take as many steps as this price allows, instead of num_steps: calls of the network for each
    sample, a backward pass as 1.3 of them, without the pilot"""
    sigma_min: Optional[Sigma] = None
    """last noise level before 0, a standard deviation for images in [-1, 1] (null: where nothing is
    left to decide, measured by a pilot; 0.002 with the exact denoiser)"""
    sigma_max: Sigma = 80.0
    """first noise level, a standard deviation for images in [-1, 1]"""
    rho: Positive = 7.0
    """exponent of the schedule; a larger one means more steps at low noise"""
    s_churn: NonNegative = 0.0
    """edm: amount of noise that is added back, over all steps (0: a deterministic sampler)"""
    s_min: NonNegative = rare(0.0)
    """edm: smallest noise level with churn"""
    s_max: Optional[NonNegativeOrInf] = rare(None)
    """edm: largest noise level with churn (null: no largest)"""
    window_min: Optional[Sigma] = None
    """window: the smallest noise level at which the network is called right after new noise (null:
    measured by a pilot of a few independent sets)"""
    window_max: Optional[Sigma] = None
    """window: the largest one (null: measured)"""
    window_churn: Optional[NonNegative] = None
    """window: how much each call's noise level exceeds the one from which noise was added, as a
    fraction (gamma in EDM; null: measured)"""

    def __post_init__(self):
        if self.s_max == math.inf:
            object.__setattr__(self, "s_max", None)  # which JSON has; while it is built
        lowest = self.sigma_min or SIGMA_MIN
        if lowest >= self.sigma_max:
            reject("sigma_min", lowest, f"less than sigma_max = {self.sigma_max}")
        if self.num_steps < 2 and self.sampler not in (None, "student"):
            reject("num_steps", self.num_steps, "2 or more")
        low, high = self.window_min, self.window_max
        if low is not None and not lowest < low < (high or self.sigma_max):
            reject(
                "window_min",
                low,
                f"more than sigma_min = {lowest} and less than "
                + (f"window_max = {high}" if high else f"sigma_max = {self.sigma_max}"),
            )
        if high is not None and not lowest < high < self.sigma_max:
            reject(
                "window_max",
                high,
                f"between sigma_min = {lowest} and sigma_max = {self.sigma_max}",
            )
        if self.sampler not in (None, "edm") and self.s_churn != 0:
            reject("s_churn", self.s_churn, f"0.0 with sampler {self.sampler}, or sampler edm")


@dataclass(frozen=True)
class GuidanceSettings:
    """Guidance"""

    guidance: Annotated[str, _methods("guidance")] = "pg"
    """what makes a set diverse: pg, particle guidance; other methods (docs/guidance.md says which
    to use); joint, the optimum that the others approximate, known for the exact denoiser"""
    noise: Annotated[str, _methods("noise")] = "iid"
    """initial noise of a set: independent (iid) or coupled"""
    churn_noise: Literal["iid", "antithetic", "simplex"] = "iid"
    """noise that the sampler adds back: independent (iid) or coupled in a set"""
    medoids_of: Count = 1
    """draw N times as many particles, guided or not, and keep the medoids (1: keep all)"""
    pool: Count = 1
    """start with N times as many particles, and keep the medoids once modes are decided (1: keep
    all)"""
    balanced_of: Count = rare(4)
    """balanced: starting noises for each particle, of which one is drawn"""
    pg_factor: NonNegative = 0.0
    """strength of pg and of other methods that have one, in the unit that pg_strength names if they
    use a potential (0: independent samples; 5 finds nearly the most for pg in worlds of images)"""
    pg_only_if_needed: bool = rare(True)
    """your data: leave the samples of pg independent if, on sequences held out from the training,
    they differ more than the answers do"""
    pg_kernel: str = "logdet"
    """potential by which the particles of a set repel each other: rbf, rbf_unsquared, inverse,
    iou, logdet, or one of your own"""
    pg_space: Optional[Literal["x", "denoised", "jacobian", "difference"]] = None
    """where the potential acts: x, the noisy images; denoised, D(x); jacobian, D(x) with the
    gradient taken through the denoiser; difference, the same by a second call (null: denoised with
    pg, else jacobian)"""
    pg_strength: Optional[Literal["measured", "joint", "sigma", "constant", "drift"]] = rare(None)
    """unit of pg_factor: measured, a move of D(x) by pg_factor times what is undecided, by a pilot,
    times grad U, bounded; joint, a drift of pg_factor * B * sigma * grad U in sets of B; sigma, a
    drift of pg_factor * sigma * grad U (alpha in the paper); constant, a drift of pg_factor * grad
    U; drift, relative to the denoiser's drift (null: measured with pg on denoised, else joint)"""
    pg_bandwidth: Literal["median", "fixed", "sigma"] = rare("median")
    """bandwidth h of the kernel: the median heuristic, a constant, or proportional to sigma"""
    pg_bandwidth_value: Positive = rare(2.0)
    """h itself if fixed, else the factor on the median heuristic or on sigma"""
    pg_sigma_min: Optional[Sigma] = None
    """smallest noise level at which guidance acts (null: all; pg fades as decisions are made,
    measured by a pilot of a few independent sets)"""
    pg_sigma_max: Optional[Sigma] = None
    """largest noise level at which guidance acts (null: all; with pg measured)"""
    pg_anneal: Literal["none", "strength", "bandwidth", "both"] = rare("none")
    """what falls to 0 from pg_sigma_max to pg_sigma_min, as half a cosine in ln sigma"""
    sequential: Count = 1
    """batches that are sampled one after the other for each condition, each repelled by those
    before it and measured together with them"""
    spell_radius: Positive = 10.0
    """spell: L2 distance, of images in [-1, 1], below which the D(x) repel each other"""
    stratified_rank: Count = rare(1)
    """stratified: number of leading directions of the posterior along which noise is spread"""
    stratified_sigma: Sigma = rare(20.0)
    """stratified: noise level at which these directions are measured"""

    def __post_init__(self):
        low, high = self.pg_sigma_min, self.pg_sigma_max
        if low is not None and high is not None and low >= high:
            reject("pg_sigma_min", low, f"less than pg_sigma_max = {high}")
        if self.pg_anneal != "none" and (low is None or high is None):
            reject("pg_anneal", self.pg_anneal, "none, or give pg_sigma_min and pg_sigma_max")
        if self.medoids_of > 1 and self.sequential > 1:
            reject("sequential", self.sequential, "1 with medoids_of, which has no memory")
        if self.pool > 1:
            if self.medoids_of > 1:
                reject("medoids_of", self.medoids_of, "1 with pool, which selects already")
            if self.sequential > 1:
                reject("sequential", self.sequential, "1 with pool, which has no memory")


@dataclass(frozen=True)
class ExperimentSettings:
    """Experiment"""

    experiment: Optional[str] = None
    """run a grid of evaluations, configs/experiments/<name>.yaml; other flags then hold for each
    of them"""
    preset: Literal["quick", "full"] = "quick"
    """number of sets in each cell of the experiment: few, or as many as narrow intervals need"""


@dataclass(frozen=True)
class RunSettings:
    """Run"""

    seed: Seed = 0
    """seed of all random numbers"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto: on a GPU if there is one"""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """precision of the network's products and convolutions; the sampler's state is always float32.
    auto: bfloat16 on GPUs that have it, else float32; tf32: float32 whose inputs GPUs round to 10
    bits"""
    compile: bool = False
    """torch.compile the network: slow to start, then faster (docs/performance.md says where it
    pays)"""
    reproducible: bool = rare(False)
    """on a GPU, take only algorithms that give the same bits every time, at a price in speed; a CPU
    always does"""
    outdir: Optional[PathText] = None
    """directory for the results (null: a new one in runs/)"""


@dataclass(frozen=True)
class TrackingSettings:
    """Tracking"""

    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """send settings, curves, pictures, results and a trained network to Weights & Biases
    (offline: keep them in --outdir/wandb for `wandb sync`)"""
    tensorboard: bool = False
    """write the same for TensorBoard, to --outdir"""


@dataclass(frozen=True)
class OriginSettings:
    """What a run was made with, and is repeated with"""

    samples_version: Optional[Count] = rare(None)
    """version of what moves samples (null: any, which is then recorded; so are the others)"""
    checkpoint_sha256: Optional[str] = rare(None)
    """hash of the trained network's file"""
    classifier_sha256: Optional[str] = rare(None)
    """hash of the file of the classifier that guides"""
    digits_sha256: Optional[str] = rare(None)
    """hash of the source of digits"""
    frames_sha256: Optional[str] = rare(None)
    """hash of your data"""
    from_run_sha256: Optional[str] = rare(None)
    """hash of the samples of the run that from_run names"""
    redraws: Optional[Count] = rare(None)
    """how often particles of these sets were drawn again, this time included: each has new noise"""


# ---------------------------------------------------------------- settings and their records


class _Groups:
    """Base class of all settings of a run: a dataclass whose fields are settings groups."""

    @classmethod
    def groups(cls) -> tuple[type, ...]:
        """The classes of the groups, in the order of the fields."""
        made = (f.default_factory for f in fields(cls))  # type: ignore[arg-type]
        return tuple(each for each in made if is_dataclass(each))  # type: ignore[misc]

    @classmethod
    def keys(cls) -> list[str]:
        """The names of all settings."""
        return [f.name for group in cls.groups() for f in fields(group)]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build and check every group from one flat dictionary {setting: value}.

        A setting that is missing takes its default; keys of other groups are ignored. Raises
        SettingError for a value that a group refuses.
        """
        return cls(*(build(group, values) for group in cls.groups()))

    def changed(self, **values: Any) -> Self:
        """The same with other values of some settings. Raises SettingError as `from_values`."""
        made = {}
        for f in fields(self):  # type: ignore[arg-type]
            group = getattr(self, f.name)
            if is_dataclass(group):
                own = {each.name for each in fields(group)} & set(values)
                made[f.name] = replace(group, **{key: values[key] for key in own})  # type: ignore
        return replace(self, **made)  # type: ignore[type-var]

    def made_with(self, found: Mapping[str, Any]) -> Self:
        """The same settings with what is found here of what makes a run.

        `found` is as `lab.records.origin` returns it. Raises SettingError if the settings name
        another one, which a run was made with before.
        """
        asked = self.record()
        for key in (f.name for f in fields(OriginSettings)):
            if asked[key] not in (None, found[key]):
                what = key.removesuffix("_sha256")
                here = found.get(what) or asked.get(what) or "this code"
                reject(
                    key,
                    _short(asked[key]),
                    f"{_short(found[key])!r}, that of {here} here and now; the run was made with "
                    f"another (--{key} null takes any)",
                )
        return self.changed(**found)

    def record(self) -> dict[str, Any]:
        """The flat dictionary {setting: value} that config.yaml and checkpoints hold."""
        groups = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return record(*(group for group in groups if not isinstance(group, dict)))


@dataclass(frozen=True)
class EvaluationSettings(_Groups):
    """All settings that decide what an evaluation computes."""

    evaluate: TaskSettings = field(default_factory=TaskSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    digits: DigitSettings = field(default_factory=DigitSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    run: RunSettings = field(default_factory=RunSettings)
    origin: OriginSettings = field(default_factory=OriginSettings)
    options: dict[str, Any] = field(default_factory=dict)
    """flat {option: value} of the methods that guidance names (`method.Method.options`)"""

    def record(self) -> dict[str, Any]:
        """As of all settings, with the methods' options."""
        return super().record() | self.options


@dataclass(frozen=True)
class TrainingSettings(_Groups):
    """All settings of a training."""

    world: WorldSettings = field(default_factory=WorldSettings)
    digits: DigitSettings = field(default_factory=DigitSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    origin: OriginSettings = field(default_factory=OriginSettings)


def build(group: type[T], values: Namespace | Mapping[str, Any]) -> T:
    """The settings of one group out of a flat dictionary or namespace. Raises SettingError."""
    if isinstance(values, Namespace):
        values = vars(values)
    own = [setting for setting in declared(group) if setting.name in values]
    return group(**{setting.name: setting.read(values[setting.name]) for setting in own})


def record(*groups: DataclassInstance) -> dict[str, Any]:
    """The flat dictionary {setting: value} of some groups, of plain Python values."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for group in groups
        for key, value in asdict(group).items()
    }


# Settings that change no result: where things lie, how and where they are computed, how often they
# are shown. What lies there is known by its hash.
WITHOUT_EFFECT = {
    *(
        "checkpoint",
        "classifier",
        "frames",
        "from_run",
        "data_root",
        "download_timeout",
        "outdir",
        "resume",
    ),
    *("device", "compile", "reproducible", "wandb", "tensorboard"),
    *("log_every", "save_every", "sample_every"),
}


def _short(value: Any) -> Any:
    """A value as a message shows it: of a hash the beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What makes two runs different, by the records of their settings: `seed: 0 and 1`, ..."""
    return [
        f"{key}: {_short(one.get(key))} and {_short(other.get(key))}"
        for key in {**one, **other}
        if key not in WITHOUT_EFFECT and one.get(key) != other.get(key)
    ]


# What were settings; most are arguments of classes now. A config.yaml may still hold them at this
# value.
FORMER = dict(
    classes=None,
    value_range=None,
    answer_classes=None,
    frame_axes=None,
    beta2=0.99,
    s_noise=1.0,
    pg_features="pixels",
    pg_pool=1,
    pg_cap=math.inf,
    balanced_sigma=2.0,
    cads_tau1=0.6,
    cads_tau2=0.9,
    cads_mixing=1.0,
    group_of=1,
)


def as_yaml(values: Mapping[str, Any]) -> str:
    """The text of config.yaml for a flat dictionary {setting: value}."""
    return yaml.safe_dump(dict(values), sort_keys=False)
