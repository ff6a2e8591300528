"""Every setting, declared once: a typed field is a YAML key, a command-line flag, its
help text, its check, and its line in the record of a run.

The three command lines share these groups. Precedence, weakest first: the defaults
here, what a checkpoint was trained with (world and model, in `evaluate.py`), a
`--config` file, flags. Nothing here imports torch, so `--help` and mistakes answer
at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, List, Literal, Mapping, NoReturn, Optional, TypeVar

import yaml
from jsonargparse import Namespace

Dataset = Literal["centered", "free", "circle_jumping", "horizontal", "mixture", "frames"]
if not TYPE_CHECKING:  # not the other way round: jsonargparse runs the body of `if TYPE_CHECKING`
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        PositiveFloat,
        restricted_number_type,
    )

    Count = restricted_number_type("Count", int, [(">", 0), ("<=", 10**9)])
    CountOrZero = restricted_number_type("CountOrZero", int, [(">=", 0), ("<=", 10**9)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])
    LogSigma = restricted_number_type("LogSigma", float, [(">=", -10), ("<=", 10)])
    Sigma = restricted_number_type("Sigma", float, [(">=", 1e-6), ("<=", 1e6)])
    Positive = restricted_number_type("Positive", float, [(">", 0), ("<", math.inf)])
    NonNegative = restricted_number_type("NonNegative", float, [(">=", 0), ("<", math.inf)])
    Many = List
else:  # a type checker cannot follow types that are made at run time
    from builtins import float as ClosedUnitInterval
    from builtins import float as LogSigma
    from builtins import float as NonNegative
    from builtins import (
        float as NonNegativeFloat,
    )
    from builtins import (
        float as Positive,
    )
    from builtins import (
        float as PositiveFloat,
    )
    from builtins import (
        float as Sigma,
    )
    from builtins import int as Count
    from builtins import int as CountOrZero
    from builtins import int as Seed
    from typing import Sequence as Many  # lists where they were given, but tuples as defaults

    from _typeshed import DataclassInstance
    from typing_extensions import Self

T = TypeVar("T", bound="DataclassInstance")


class SettingError(ValueError):
    """A setting that cannot be used. The message names the key, the value and what is accepted."""


def reject(key: str, value: Any, accepted: str) -> NoReturn:
    """Raises SettingError: which key, which value, what is accepted."""
    raise SettingError(f"{key}: got {value!r}; accepted: {accepted}")


@dataclass
class WorldSettings:
    """World"""

    dataset: Dataset = "circle_jumping"
    """which world: four of digits in frames; the plane with ten Gaussians on a circle (evaluate.py); frames of your
    own"""
    frames: Optional[str] = None
    """dataset frames: an .npz file, or a folder with a folder of PNGs for each sequence (frames.py says what is in
    them)"""
    seq_len: Optional[Count] = None
    """frames in a sequence of digits (null: 1 for centered, 2 for circle_jumping, else 16)"""
    num_cond_frames: Optional[CountOrZero] = None
    """frames that condition the generated one (null: 0 for centered, 1 for circle_jumping and frames, else 3)"""
    num_digits: Count = 1
    """digits in a frame"""
    image_size: Count = 32
    """side of a frame of digits, px"""
    digit_size: Count = 16
    """side of a digit, px"""
    classes: Optional[List[CountOrZero]] = None
    """keep only these digit classes, 0 to 9 (null: all)"""
    num_directions: Literal[2, 4, 8] = 8
    """circle_jumping: number of directions"""
    p: Optional[ClosedUnitInterval] = None
    """probability of the first direction, or of right in horizontal (null: all alike)"""
    deterministic: bool = True
    """free: reflect at a wall, instead of leaving it with a new random velocity"""
    end_at_choice: bool = False
    """horizontal: windows end right after a new direction was drawn"""

    def __post_init__(self):
        name = self.dataset
        if self.num_cond_frames is None:
            self.num_cond_frames = {"centered": 0, "circle_jumping": 1, "frames": 1}.get(name, 3)
        if self.seq_len is None:
            self.seq_len = {"centered": 1, "circle_jumping": 2}.get(name, 16)
        if self.seq_len <= self.num_cond_frames:
            reject("seq_len", self.seq_len, f"more than num_cond_frames = {self.num_cond_frames}")
        if (name == "frames") != (self.frames is not None):
            reject("frames", self.frames, "a path with dataset frames, and only there")
        if self.digit_size > self.image_size - (8 if name == "circle_jumping" else 0):
            reject(
                "digit_size",
                self.digit_size,
                f"a size that leaves room to move in image_size = {self.image_size}",
            )
        if self.classes is not None and not (self.classes and set(self.classes) <= set(range(10))):
            reject("classes", self.classes, "a list of digit classes from 0 to 9")
        if name == "circle_jumping" and self.num_cond_frames % 2 == 0 and self.num_cond_frames:
            reject(
                "num_cond_frames",
                self.num_cond_frames,
                "an odd number for circle_jumping, whose last conditioning frame is centred",
            )


@dataclass
class DigitSettings:
    """Digits"""

    digits: Literal["auto", "mnist", "embedded", "both"] = "auto"
    """where digits come from; auto: MNIST if it can be had, else scikit-learn's; both: mixed, for training"""
    data_root: str = "data"
    """folder of torchvision's MNIST (downloaded there when missing)"""
    download_timeout: Positive = 10.0
    """without an answer for so long there is no network, seconds"""


@dataclass
class ModelSettings:
    """Model"""

    channels: Many[Count] = (64, 64, 128)
    """width at each resolution, finest first"""
    blocks: Count = 2
    """residual blocks per resolution"""
    attention: Many[CountOrZero] = (1,)
    """resolutions with self-attention, as indices into channels"""
    head_channels: Count = 64
    """channels of an attention head"""
    patch_size: Literal[1, 2, 4, 8] = 1
    """space-to-depth: p x p pixels become one position, px"""
    motion: CountOrZero = 0
    """the network may move the last conditioning frame by up to so many px an axis (0: it draws every frame anew)"""
    crop: bool = False
    """the network works only where the world ever lights a pixel (measured); the rest of the frame is black"""
    dropout: ClosedUnitInterval = 0.0
    """probability of dropout inside residual blocks"""
    class_labels: bool = False
    """condition on the digit class"""
    sigma_data: Optional[Positive] = None
    """standard deviation of the data in [-1, 1] (null: measured)"""

    @property
    def multiple(self) -> int:
        """Of so many px are the sides of what the network sees multiples."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


@dataclass
class OptimizationSettings:
    """Training"""

    target: Literal["drawn", "posterior"] = "drawn"
    """what a noisy frame should become: the frame that was drawn, or the mean of the world's right answers given
    the noisy one, which has the same minimiser and less noise in the gradient (Xu et al. 2023, arXiv 2302.00670)"""
    iterations: Count = 20000
    """updates"""
    batch_size: Count = 512
    """images per update, over all processes"""
    accumulate: Count = 1
    """parts in which a batch goes through the network, one after the other, where memory is short"""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam: AdamW for all weights; muon: Muon for the hidden matrices, AdamW for the rest"""
    lr: Positive = 5e-4
    """learning rate of AdamW"""
    muon_lr: Positive = 0.02
    """learning rate of Muon"""
    beta2: ClosedUnitInterval = 0.99
    """AdamW's second-moment decay, per update"""
    weight_decay: NonNegative = 0.0
    """decoupled weight decay, per update and unit of learning rate"""
    warmup: CountOrZero = 200
    """linear warm-up, iterations"""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """the learning rate after the warm-up; cosine: down to 0 at the last iteration"""
    clip_grad: Positive = 1.0
    """largest norm of the gradient"""
    ema: ClosedUnitInterval = 0.999
    """decay of the average of the weights, per iteration"""
    p_mean: LogSigma = -1.2
    """mean of ln sigma in training"""
    p_std: Positive = 1.2
    """standard deviation of ln sigma in training"""
    log_every: Count = 50
    """between records of metrics.jsonl and of tracking, iterations"""
    save_every: Count = 1000
    """between checkpoints, iterations"""
    sample_every: CountOrZero = 2000
    """between sample sheets, iterations (0: only at the end)"""
    resume: Optional[str] = None
    """folder of a run to go on with"""

    def __post_init__(self):
        if self.p_std > 10:
            reject("p_std", self.p_std, "at most 10")


@dataclass
class TaskSettings:
    """Evaluation"""

    task: Optional[Literal["conditional", "unconditional"]] = None
    """next frame given the ones before, or an image out of nothing (null: what the world offers)"""
    checkpoint: Optional[str] = None
    """trained network (null: checkpoints/<dataset>.safetensors beside the code)"""
    denoiser: Literal["trained", "exact"] = "trained"
    """exact: the posterior mean over the world's right answers, no network"""
    num_sets: Count = 32
    """sets, each with its own test digit"""
    batch_size: Count = 8
    """particles in a set"""


@dataclass
class SamplerSettings:
    """Sampler (EDM, algorithm 2)"""

    num_steps: Count = 22
    """steps from sigma_max to 0"""
    sigma_min: Sigma = 0.002
    """last noise level before 0: a standard deviation, of images in [-1, 1]"""
    sigma_max: Sigma = 80.0
    """first noise level, likewise"""
    rho: Positive = 7.0
    """exponent of the schedule: larger means more steps at low noise"""
    s_churn: NonNegative = 0.0
    """noise added back, over all steps (0: deterministic)"""
    s_min: NonNegative = 0.0
    """smallest sigma with churn"""
    s_max: NonNegativeFloat = math.inf
    """largest sigma with churn"""
    s_noise: Positive = 1.0
    """factor on the noise that churn adds (1: as much as it should be)"""

    def __post_init__(self):
        if self.sigma_min >= self.sigma_max:
            reject("sigma_min", self.sigma_min, f"less than sigma_max = {self.sigma_max}")
        if self.num_steps < 2:
            reject("num_steps", self.num_steps, "2 or more")


@dataclass
class GuidanceSettings:
    """Guidance"""

    guidance: Literal["pg", "spell", "cads", "kmedoids", "reference", "none"] = "pg"
    """what makes a set diverse: particle guidance, a rival, or the thesis's form with its sign error"""
    noise: Literal["iid", "antithetic", "simplex", "stratified"] = "iid"
    """starting noise inside a set: coupled or not, each particle's is exactly normal"""
    pg_factor: NonNegative = 0.0
    """strength of pg and reference, in the unit of pg_strength; 0 samples independently"""
    pg_kernel: str = "logdet"
    """potential by which the particles of a set repel: rbf, rbf_unsquared, inverse, iou, logdet, or one of your own"""
    pg_space: Literal["x", "denoised", "jacobian"] = "jacobian"
    """where it acts: the noisy x, D(x), or D(x) differentiated through the denoiser"""
    pg_features: Literal["pixels", "classifier"] = "pixels"
    """what it compares: images, or what a digit classifier sees in them (not the one that judges)"""
    pg_pool: Count = 1
    """side of the squares over which images are averaged before it compares them, px (1: none)"""
    pg_strength: Literal["constant", "sigma", "drift"] = "drift"
    """unit of pg_factor: a drift of pg_factor * grad, times sigma (alpha of the PG paper), or relative to the drift"""
    pg_bandwidth: Literal["median", "fixed", "sigma"] = "median"
    """bandwidth h of the kernel: median heuristic, a constant, or following sigma"""
    pg_bandwidth_value: Positive = 1.0
    """h itself, or what the median heuristic or sigma is multiplied with"""
    pg_sigma_min: Sigma = 3.0
    """guidance acts from this noise level ..."""
    pg_sigma_max: Sigma = 40.0
    """... up to this one"""
    pg_anneal: Literal["none", "strength", "bandwidth", "both"] = "none"
    """what falls to 0 from pg_sigma_max to pg_sigma_min, by a half cosine in ln sigma"""
    pg_cap: PositiveFloat = math.inf
    """largest push on one particle, as a multiple of the drift per pixel"""
    redraws: CountOrZero = 6
    """pg: times that a set's most faulty particle is drawn again, repelled by the rest of its set"""
    most_alike: ClosedUnitInterval = 0.25
    """pg: likeness above which two particles share an answer, a fault: IoU of images or, with the features of a
    classifier, the probability that both show the same digit"""
    most_doubt: PositiveFloat = 1.6
    """pg: doubt, over the median of the set, above which a particle is at fault: how far the denoiser would move it"""
    doubt_sigma: Sigma = 1.5
    """pg: noise level at which the denoiser is asked"""
    sequential: Count = 1
    """sets of batch_size drawn one after the other for each condition, repelled by those before, judged together"""
    spell_radius: Positive = 10.0
    """spell: L2 distance below which D(x) repel, of images in [-1, 1]"""
    cads_scale: NonNegative = 0.25
    """cads: standard deviation of the noise on the conditioning, of images in [-1, 1]"""
    cads_tau1: ClosedUnitInterval = 0.6
    """cads: no noise below this part of the schedule (0: sigma_min, 1: sigma_max) ..."""
    cads_tau2: ClosedUnitInterval = 0.9
    """... and no conditioning above this one"""
    cads_mixing: ClosedUnitInterval = 1.0
    """cads: share of the noised conditioning that is brought back to its mean and deviation"""
    kmedoids_pool: Count = 4
    """kmedoids: independent samples per particle to choose from"""
    stratified_rank: Count = 1
    """stratified: leading directions of the posterior along which the noise is spread"""
    stratified_sigma: Sigma = 20.0
    """stratified: noise level at which they are measured"""

    def __post_init__(self):
        if self.pg_sigma_min >= self.pg_sigma_max:
            reject(
                "pg_sigma_min", self.pg_sigma_min, f"less than pg_sigma_max = {self.pg_sigma_max}"
            )
        if self.cads_tau1 >= self.cads_tau2:
            reject("cads_tau1", self.cads_tau1, f"less than cads_tau2 = {self.cads_tau2}")


@dataclass
class ExperimentSettings:
    """Experiment"""

    experiment: Optional[str] = None
    """run a whole experiment, configs/experiments/<name>.yaml; other flags then hold for all its cells"""
    preset: Literal["quick", "full"] = "quick"
    """how many sets its cells have: quick, or full for narrow intervals"""


@dataclass
class RunSettings:
    """Run"""

    seed: Seed = 0
    """seed of everything random"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: on a GPU if there is one"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the network's products; the sampler's state is float32. auto: bfloat16 on a GPU that has it"""
    compile: bool = False
    """torch.compile the network: a minute or two first, then faster steps (docs/performance.md says where it pays)"""
    outdir: Optional[str] = None
    """folder for the results (null: a new one under runs/)"""


@dataclass
class TrackingSettings:
    """Tracking"""

    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Weights & Biases: settings, curves, pictures, results, and of a training the network (offline: in --outdir/wandb,
    for `wandb sync`)"""
    tensorboard: bool = False
    """the same for TensorBoard, in --outdir"""


# ---------------------------------------------------------------- settings and their records


class _Groups:
    """Base class of all settings of a run: a dataclass whose fields are settings groups."""

    @classmethod
    def groups(cls) -> tuple[type, ...]:
        """The classes of the groups, in the order of the fields."""
        return tuple(f.default_factory for f in fields(cls))  # type: ignore[arg-type, misc]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build and check every group from one flat dictionary {setting: value}.

        A setting that is missing takes its default; keys of other groups are ignored. Raises
        SettingError for a value that a group refuses.
        """
        return cls(*(build(group, values) for group in cls.groups()))

    def record(self) -> dict[str, Any]:
        """The flat dictionary {setting: value} that config.yaml and checkpoints hold."""
        return record(*(getattr(self, f.name) for f in fields(self)))  # type: ignore[arg-type]


@dataclass
class EvaluationSettings(_Groups):
    """All settings that decide what an evaluation computes."""

    evaluate: TaskSettings = field(default_factory=TaskSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    digits: DigitSettings = field(default_factory=DigitSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    run: RunSettings = field(default_factory=RunSettings)


@dataclass
class TrainingSettings(_Groups):
    """All settings of a training."""

    world: WorldSettings = field(default_factory=WorldSettings)
    digits: DigitSettings = field(default_factory=DigitSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)


def build(group: type[T], values: Namespace | Mapping[str, Any]) -> T:
    """The settings of one group out of a flat dictionary or namespace. Raises SettingError."""
    if isinstance(values, Namespace):
        values = values.as_dict()
    own = {f.name: values[f.name] for f in fields(group) if f.name in values}
    for f in fields(group):
        if f.name in own and own[f.name] is None and "Optional" not in str(f.type):
            reject(f.name, None, "a value, or leave it out")
    return group(**own)


def record(*groups: DataclassInstance) -> dict[str, Any]:
    """The flat dictionary {setting: value} of some groups, of plain Python values."""
    return {key: _plain(value) for group in groups for key, value in asdict(group).items()}


def _plain(value: Any) -> Any:
    """The value in built-in types: jsonargparse's checked numbers are subclasses of int and float,
    which YAML and JSON would not write as plain numbers."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def as_yaml(values: Mapping[str, Any]) -> str:
    """The text of config.yaml for a flat dictionary {setting: value}."""
    return yaml.safe_dump(dict(values), sort_keys=False)
