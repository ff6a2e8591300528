"""What sampling costs beside its network calls, and beside the samplers of azula and diffusers.

    pip install -e ".[dev]"
    python benchmarks/sampling.py

Three tables: whole runs of evaluate.py over the same network calls alone; samplers on one network,
and on a network that costs nothing, where only the sampler is left; and how far float32 is from
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import measure

from config import Count

GUIDED = "--pg_factor 3 --sampler edm --pg_sigma_min 3 --pg_sigma_max 40".split()
RUNS = {
    "no guidance": [],
    "in D space": [*GUIDED, "--pg_space", "denoised"],
    "in D space, IoU": [*GUIDED, "--pg_space", "denoised", "--pg_kernel", "iou"],
    "through the Jacobian": GUIDED,
    "in D space, in the window (the default)": ["--pg_factor", "5"],
}


@dataclass
class SamplingBenchmarkSettings:
    """Sampling"""

    repetitions: Count = 5
    """of everything, interleaved"""
    num_sets: Count = 32
    """sets of 8"""
    num_steps: Count = 22
    """steps of the sampler"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def bare(set_sampler, sets, backward: bool):
    """The network calls of a run and nothing else.

    With `backward`, calls at which guidance acts include one gradient to the input.
    """
    import torch

    denoise = set_sampler.denoiser(sets)
    x = torch.randn(len(sets), set_sampler.batch_size, *set_sampler.particle_shape)
    guidance = set_sampler.settings.guidance
    low, high = guidance.pg_sigma_min, guidance.pg_sigma_max
    levels = set_sampler.schedule.sigmas
    sigmas = [levels[0], *levels[1:-1].repeat_interleave(2)]

    def calls() -> None:
        for sigma in sigmas:
            if backward and low <= sigma <= high:
                at = x.clone().requires_grad_()
                torch.autograd.grad(denoise(at, sigma), at, x)
            else:
                with torch.no_grad():
                    denoise(x, sigma)

    return calls


def flags_of(args, num_sets: int) -> list[str]:
    """Flags of evaluate.py that all runs share."""
    flags = f"--num_sets {num_sets} --num_steps {args.num_steps} --data_root {args.data_root}"
    return [*flags.split(), "--device", "cpu"]


def overhead(args) -> tuple[str, dict]:
    """Whole runs over their network calls alone."""
    import torch

    from lab import assemble

    base = flags_of(args, args.num_sets)
    samplers = {name: assemble.evaluation([*base, *flags]).sampler for name, flags in RUNS.items()}
    sets = torch.arange(args.num_sets)
    runs = {name: partial(sampler.sample, sets) for name, sampler in samplers.items()}
    for name, backward in (("forward", False), ("forward and backward", True)):
        runs[name] = bare(samplers["through the Jacobian"], sets, backward)
    times = measure.interleaved(runs, args.repetitions)
    result, rows = {}, []
    for name in RUNS:
        forward, both = (measure.ratio(times, name, over) for over in list(runs)[-2:])
        result[name] = dict(over_forward=forward, over_forward_and_backward=both)
        second = measure.shown(both, 3) if "Jacobian" in name else ""
        rows.append([name, measure.shown(forward, 3), second])
    header = "run | over its forward calls | over these and one backward to the input each"
    return measure.table(header, rows), result


def samplers(net, cond, num_steps: int) -> dict:
    """name -> (function of starting noise, network calls): Heun's method, Karras' noise levels."""
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule
    from azula.sample import HeunSampler
    from diffusers import EDMEulerScheduler, HeunDiscreteScheduler

    from diverse_sampling.steps import edm_sampler, karras_sigmas

    sigmas, rho = karras_sigmas(num_steps, 0.002, 80.0, 7.0), 7.0

    class Karras(Schedule):
        def __call__(self, t):
            sigma = (80.0 ** (1 / rho) * t + 0.002 ** (1 / rho) * (1 - t)) ** rho
            return torch.ones_like(t), sigma

    class Wrapped(Denoiser):
        schedule = Karras()

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(net(x_t, self.schedule(t)[1], cond))

    azula = HeunSampler(Wrapped(), steps=num_steps - 1, silent=True)
    heun = HeunDiscreteScheduler(use_karras_sigmas=True, prediction_type="epsilon")
    euler = EDMEulerScheduler(sigma_data=float(net.sigma_data))

    @torch.no_grad()
    def ours(x):
        return edm_sampler(lambda x, sigma: net(x[0], sigma, cond)[None], 80 * x[None], sigmas)[0]

    @torch.no_grad()
    def diffusers_heun(x):
        heun.set_timesteps(num_steps)
        x = x * heun.init_noise_sigma
        for t in heun.timesteps:
            # What a network trained for it would see; ours wants the noisy image itself.
            heun.scale_model_input(x, t)
            sigma = heun.sigmas[heun.step_index]
            x = heun.step((x - net(x, sigma, cond)) / sigma, t, x).prev_sample
        return x

    @torch.no_grad()
    def diffusers_edm(x):  # first order: twice the steps for the same number of network calls
        euler.set_timesteps(2 * num_steps - 1)
        x = x * euler.init_noise_sigma
        for t in euler.timesteps:
            inputs = euler.scale_model_input(x, t)
            inputs = inputs if cond is None else torch.cat([inputs, cond], 1)
            output = net.unet(inputs, t.expand(len(x)))[0]
            x = euler.step(output, t, x).prev_sample
        return x

    calls = 2 * num_steps - 1
    return {
        "this project": (ours, calls),
        "azula HeunSampler": (lambda x: azula(80 * x), calls - 1),
        "diffusers HeunDiscreteScheduler": (diffusers_heun, calls),
        "diffusers EDMEulerScheduler": (diffusers_edm, calls),
    }


def peers(args) -> tuple[str, dict]:
    """Time per network call over a bare call, on a small U-Net and on one that only multiplies."""
    import torch

    from config import ModelSettings
    from lab import checkpoint

    class Free(torch.nn.Module):
        def forward(self, x, c_noise, labels=None, moved=None):
            return 0.5 * x[:, :1], None, None, None

    torch.manual_seed(0)
    small = ModelSettings(channels=[32, 64], blocks=1, attention=[1], patch_size=4)
    particles, result, rows = 8 * args.num_sets, {}, []
    for kind in ("U-Net", "no network"):
        net = checkpoint.make_denoiser((1, 1), small, 0.5).eval().requires_grad_(False)
        if kind == "no network":
            net.add_module("unet", Free())
        x, cond = (torch.randn(particles, 1, 32, 32) for _ in range(2))
        candidates = samplers(net, cond, args.num_steps)
        runs = {name: (lambda run=run: run(x)) for name, (run, _) in candidates.items()}

        @torch.no_grad()
        def bare_calls():
            for _ in range(2 * args.num_steps - 1):
                net(x, torch.tensor(1.0), cond)

        times = measure.interleaved(
            runs | {"bare": bare_calls},
            args.repetitions if kind == "U-Net" else 4 * args.repetitions,
        )
        each = {name: [t / calls for t in times[name]] for name, (_, calls) in candidates.items()}
        for name, (_, calls) in candidates.items():
            over_bare = measure.ratio(times, name, "bare")
            over_ours = measure.ratio(each, name, "this project")
            result[f"{name}, {kind}"] = dict(
                calls=calls, over_bare=over_bare, per_call_over_ours=over_ours
            )
            rows.append([kind, name, calls, measure.shown(over_bare), measure.shown(over_ours)])
    header = "network | sampler | network calls | time over {} bare calls | time per call over ours"
    return measure.table(header.format(2 * args.num_steps - 1), rows), result


def precision(args) -> tuple[str, dict]:
    """The included network's samples in float32, and with a float64 state, against float64."""
    import torch

    from diverse_sampling.steps import edm_sampler
    from lab import assemble

    sets = torch.arange(4)
    set_sampler = assemble.evaluation(flags_of(args, len(sets))).sampler
    shape = (len(sets), 8, *set_sampler.particle_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = set_sampler.network
    assert net is not None  # the included one

    @torch.no_grad()
    def sample(state: torch.dtype, network: torch.dtype, bf16: bool):
        net.to(network).autocast = bf16
        denoise = set_sampler.denoiser(sets)
        to_state = lambda x, sigma: denoise(x, sigma).to(state)
        sigmas = set_sampler.schedule.sigmas
        return edm_sampler(to_state, (80 * noise).to(state), sigmas).double()

    exact, result, rows = sample(torch.float64, torch.float64, False), {}, []
    for name, options in {
        "all float32": (torch.float32, torch.float32, False),
        "float64 state, float32 network": (torch.float64, torch.float32, False),
        "float32 state, bfloat16 network": (torch.float32, torch.float32, True),
    }.items():
        error = (sample(*options) - exact).abs()
        largest, typical = float(error.max()), float(error.square().mean().sqrt())
        result[name] = dict(largest=largest, root_mean_square=typical)
        rows.append([name, f"{typical:.1e}", f"{largest:.1e}"])
    header = "precision | error against float64, root mean square | largest"
    return measure.table(header, rows), result


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(SamplingBenchmarkSettings, argv)
    measure.write_parts(
        args.outdir,
        "sampling",
        {part.__name__: part(args) for part in (overhead, peers, precision)},
        num_sets=args.num_sets,
        num_steps=args.num_steps,
        repetitions=args.repetitions,
    )


if __name__ == "__main__":
    main()
