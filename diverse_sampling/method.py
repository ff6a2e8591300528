"""What a method is: each says it once, as `METHOD`, in the file that has its equation.

The name of the file is the value of its flag: guidance/NAME.py is `--guidance NAME`, a denoiser of
sets, and coupling/NAME.py is `--noise NAME`, starting noise of sets. Methods that are there to be
compared with lie in the folder `rivals` of each. To add a method is to add a file.

Nothing here imports torch. A method's file does, and is imported when somebody chooses the method;
names, and the keys of options, are read without it.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Denoiser = Callable[[Tensor, Tensor], Tensor]

# The folder of a flag's methods, and its value that stands for none of them.
FOLDERS = dict(guidance="guidance", noise="coupling")
NONE = dict(guidance="none", noise="iid")
HELPERS = ("__init__", "base")

# What a method may need that somebody asks about.
STRENGTH = "a strength"  # a --pg_factor of more than 0
BACKWARD = "backward passes"
PILOT = "a pilot"
CONDITION = "a condition to add noise to"
NETWORK = "a network with features"
ANSWERS = "the answers"
CLASSES = "a classifier"
NO_CHURN = "a sampler without churn"
EARLIER = "earlier samples of its set"

# So that rounding moves no noise level across a bound.
ROUNDING = 1e-6

KEPT = "kept"
SHIFTED = "shifted"


@dataclass(frozen=True)
class Classes:
    """The classes that the particles of G sets may show.

    Arguments:
        names: of the k classes
        log_posterior: (x (G, B, C, H, W), sigma) -> log p(class | x; sigma), (G, B, k),
            differentiable in x
        wanted: (G, k) bool, those that a diverse set has to show; None: all
    """

    names: Sequence[str]
    log_posterior: Callable[[Tensor, Tensor], Tensor]
    wanted: Tensor | None = None


@dataclass(frozen=True)
class Sets:
    """What a method is given: G sets of B particles, their denoiser, and what was asked for.

    Arguments:
        denoise: the denoiser of the sets, without guidance
        particles: B
        evenly: (G,) float64 in [0, 1), a number of each set, spread evenly over the sets of a run
        settings: those of guidance that methods share (`config.GuidanceSettings`)
        options: the method's own, its `Method.options`
        sigma_max: the largest noise level, a float64 scalar tensor
        window: the noise levels between which the window adds noise back at each call; None for
            other samplers
        position: noise level -> its place in the schedule, from 0 at the smallest to 1
        noise: (stream, shape of a particle's noise or None for that of a particle) -> a source of
            standard normal noise (G, B, *shape)
        generators: stream -> a generator for each set
        condition: -> the conditioning frames (G, Cc, H, W) in [-1, 1], None where there are none
        bind: conditioning (G, B, Cc, H, W) -> the denoiser with it in place of the sets' own
        features: -> the sets' own denoiser, which returns features of x (G, B, ...) beside D(x)
        joint: -> the denoiser of sets that are as diverse as they can be, where it is known
        classes: -> what the classes of these sets are, and how they are recognised
        decisions: where it is decided what a sample shows (`decisions.Decisions`); None if nobody
            needs it
        memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
    """

    denoise: Denoiser
    particles: int
    evenly: Tensor
    settings: Any
    options: Any
    sigma_max: Tensor
    window: Any
    position: Callable[[float], float]
    noise: Callable[[int, tuple[int, ...] | None], Callable[[], Tensor]]
    generators: Callable[[int], list[torch.Generator]]
    condition: Callable[[], Tensor | None]
    bind: Callable[[Tensor], Denoiser]
    features: Callable[[], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]
    joint: Callable[[], Denoiser]
    classes: Callable[[], Classes]
    decisions: Any = None
    memory: Tensor | None = None

    @property
    def levels(self) -> dict[str, float | None]:
        """The smallest and the largest noise level at which guidance acts; None: all.

        In the window guidance acts between its noise levels.
        """
        return acting(self.settings, self.window)


def inside(window: Any) -> dict[str, float]:
    """The smallest and the largest noise level at which guidance acts in a window.

    The last noised call is not guided, since new noise no longer covers what a push does there.
    """
    return dict(sigma_min=window.low * (1 + ROUNDING), sigma_max=window.high * (1 + ROUNDING))


def acting(settings: Any, window: Any) -> dict[str, float | None]:
    """`Sets.levels` of settings of guidance and of a window, None without one."""
    given = dict(sigma_min=settings.pg_sigma_min, sigma_max=settings.pg_sigma_max)
    within = {} if window is None else inside(window)
    return {key: within.get(key) if level is None else level for key, level in given.items()}


@dataclass(frozen=True)
class Method:
    """One method.

    Arguments:
        title: its name in tables
        make: guidance: `Sets` -> a denoiser of these sets. Noise: (`Sets`, a source of standard
            normal noise (G, B, C, H, W)) -> the starting noise of these sets, of deviation 1
        needs: what it needs, in words; those above are asked about
        frequencies: what becomes of how often samples are in a mode
        shown: {setting: how its value follows the title}, such as `, radius {:g}`
        only: {setting: the one value that it can be combined with}
        options: a dataclass of its own settings, whose name in the file is `Options`
        start: options -> the factor on the starting noise
        candidates: settings that methods share -> how many starting noises it draws for a particle
        beside: of guidance, settings that methods share -> what each call that it guides costs
            beside the call: (forward, backward) calls of the denoiser for each particle
        remaining: (its own settings, B, steps) -> how many candidates of a set each of the first
            steps takes, if it prunes them; it then samples without guidance, by Euler's steps
        before: of noise, (settings that methods share, B) -> the same for the starting noise of one
            particle in a set of B
    """

    title: str
    make: Callable[..., Any]
    needs: Sequence[str] = ()
    frequencies: str = SHIFTED
    shown: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    options: type | None = None
    start: Callable[[Any], float] = lambda options: 1.0
    candidates: Callable[[Any], int] = lambda settings: 1
    beside: Callable[[Any], tuple[float, float]] = lambda settings: (0, 0)
    remaining: Callable[[Any, int, int], Sequence[int]] = lambda options, particles, steps: ()
    before: Callable[[Any, int], tuple[float, float]] = lambda settings, particles: (0, 0)


@functools.cache
def _files(flag: str) -> dict[str, Path]:
    """{name: file} of all methods of a flag, the ones to use before their rivals."""
    folder = Path(__file__).parent / FOLDERS[flag]
    paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("rivals/*.py"))]
    return {path.stem: path for path in paths if path.stem not in HELPERS}


def names(flag: str, rivals: bool = True) -> tuple[str, ...]:
    """The values of a flag, `guidance` or `noise`, the one for none of its methods first."""
    found = [name for name, path in _files(flag).items() if rivals or path.parent.name != "rivals"]
    return (NONE[flag], *found)


def find(flag: str, name: str) -> Method | None:
    """The method that a flag's value names; None for the value that names none.

    Imports its file. Raises KeyError for a name that there is not.
    """
    if name == NONE[flag]:
        return None
    path = _files(flag)[name]
    inside = path.with_suffix("").relative_to(Path(__file__).parent).parts
    package = __name__.rpartition(".")[0]
    return importlib.import_module(".".join(filter(None, (package, *inside)))).METHOD


@functools.cache
def option_keys() -> dict[str, tuple[str, str]]:
    """{key of an option: (flag, name) of the method that has it}, of all methods."""
    return {
        statement.target.id: (flag, name)
        for flag in FOLDERS
        for name, path in _files(flag).items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Options"
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def all_options() -> list[type]:
    """The dataclasses of the options of all methods. Imports their files."""
    methods = [find(flag, name) for flag in FOLDERS for name in names(flag)]
    return [method.options for method in methods if method is not None and method.options]
