"""The U-Net's forward pass and training step, compared with a UNet2DModel of diffusers.

Both have the same widths, depths and attention.

    pip install -e ".[dev]"
    python benchmarks/network.py                      # float32 on a CPU; on a GPU bfloat16 too

Also the hardware limits of a forward pass: operations and bytes per image, and the rates at which
this machine multiplies matrices and copies memory. With and without torch.compile.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Literal

import measure

from config import Count
from diverse_sampling.devices import pick_device

# Of the square matrices whose product is the rate that a network is compared with.
MATRIX_SIDE = 2048
COPIED = 2**26  # numbers, so many that no cache holds them
THEIRS = "diffusers UNet2DModel"


@dataclass
class NetworkBenchmarkSettings:
    """Network"""

    network: str = "configs/circle_jumping.yaml"
    """the training config whose network is measured"""
    images: Count = 32
    """in a call"""
    repetitions: Count = 5
    """of everything, interleaved"""
    compile: bool = True
    """measure torch.compile too"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""


def peer(settings):
    """diffusers' U-Net of the same widths, depths and attention, for settings of a training."""
    from diffusers import UNet2DModel

    model = settings.model
    attends = ["Attn" * (level in model.attention) for level in range(len(model.channels))]
    return UNet2DModel(
        sample_size=settings.world.image_size,
        in_channels=settings.world.num_cond_frames + 1,
        out_channels=1,
        block_out_channels=tuple(model.channels),
        layers_per_block=model.blocks,
        down_block_types=tuple(f"{attention}DownBlock2D" for attention in attends),
        up_block_types=tuple(f"{attention}UpBlock2D" for attention in reversed(attends)),
        attention_head_dim=model.head_channels,
        norm_num_groups=math.gcd(32, *model.channels),
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
    )


def operations(call) -> int:
    """Floating-point operations of a call: two per multiply-add of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def traffic(call) -> int:
    """Bytes that the operations of a call read and write, each by itself; views are free."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if not function.is_view:
                self.total += sum(
                    leaf.numel() * leaf.element_size()
                    for leaf in tree_leaves((args, kwargs, out))
                    if isinstance(leaf, torch.Tensor)
                )
            return out

    with Counter() as counter:
        call()
    return counter.total


def measured_rates(nets, args, device, x) -> tuple[float, dict, dict]:
    """Seconds of everything, interleaved, in both precisions.

    Arguments:
        nets: {name: (network, call of it, operations for an image)}

    Returns bytes a second of a copy, and {(what, precision, pass): seconds} and its operations.
    """
    import torch

    def forward(call, bf16):
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            call()

    def step(net, call, bf16):
        net.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = call().float().square().mean()
        loss.backward()

    # Written to, so that every page of both is memory of its own.
    source, target = (torch.ones(COPIED, device=device) for _ in range(2))
    runs: dict[Any, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    works: dict[tuple[str, str, str], float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        bf16, precision = dtype == torch.bfloat16, str(dtype).removeprefix("torch.")
        matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device).to(dtype)
        runs["matrix product", precision, ""] = partial(torch.matmul, matrix, matrix)
        works["matrix product", precision, ""] = 2 * MATRIX_SIDE**3
        for name, (net, call, each) in nets.items():
            runs[name, precision, "forward"] = partial(forward, call, bf16)
            works[name, precision, "forward"] = len(x) * each
            runs[name, precision, "forward and backward"] = partial(step, net, call, bf16)
            works[name, precision, "forward and backward"] = 3 * len(x) * each
    times = measure.interleaved(runs, args.repetitions, device.type)
    return measure.rate(times.pop("copy"), 2 * 4 * COPIED)["median"], times, works


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(NetworkBenchmarkSettings, argv)
    import torch

    import train
    from lab import checkpoint

    device, n = pick_device(args.device), args.images
    settings, _ = train.parse(["--config", args.network])
    torch.manual_seed(0)
    given, side = settings.world.num_cond_frames or 0, settings.world.image_size
    ours = checkpoint.make_denoiser((given, 1), settings.model, 0.5).unet.to(device)
    theirs = peer(settings).to(device)
    x = torch.randn(n, given + 1, side, side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    c_noise = torch.randn(n, device=device)
    calls: dict[str, tuple[Any, Callable[[], Any]]] = {
        "this project": (ours, lambda: ours(x, c_noise)[0]),
        THEIRS: (theirs, lambda: theirs(x, c_noise).sample),
    }
    with torch.no_grad():
        moved = {name: traffic(call) / n for name, (_, call) in calls.items()}
    nets = {name: (net, call, operations(call) / n) for name, (net, call) in calls.items()}
    if args.compile:
        compiled = copy.deepcopy(ours)
        compiled.compile()
        call = lambda: compiled(x, c_noise)[0]
        nets["this project, compiled"] = (compiled, call, nets["this project"][2])

    bandwidth, times, works = measured_rates(nets, args, device, x)
    rows, result = [], {}
    for key, seconds in times.items():
        what, precision, kind = key
        rates = measure.rate(seconds, works[key] / 1e9)
        product = "matrix product", precision, ""
        ratios = zip(times[product], seconds)
        share = measure.spread([works[key] * a / (works[product] * b) for a, b in ratios])
        faster = measure.ratio(times, (THEIRS, precision, kind), key) if kind else None
        images = measure.rate(seconds, n)["median"] if kind else None
        result[", ".join(filter(None, key))] = dict(
            gigaflops=rates,
            share_of_matrix_product=share,
            times_as_fast_as_diffusers=faster,
            images_per_second=images,
        )
        row = [*key, f"{images:.0f}" if kind else "", f"{rates['median']:.0f}"]
        compared = measure.shown(faster) if faster and what != THEIRS else ""
        rows.append([*row, f"{share['median']:.2f}", compared])
    parameters = {
        name: sum(p.numel() for p in net.parameters()) for name, (net, *_) in nets.items()
    }
    product_rate = result["matrix product, float32"]["gigaflops"]["median"]
    limits = [
        [
            name,
            f"{parameters[name] / 1e6:.1f} M",
            f"{nets[name][2] / 1e9:.2f} billion",
            f"{nets[name][2] / 1e6 / product_rate:.1f} ms",
            f"{moved[name] / 1e6:.0f} MB",
            f"{1e3 * moved[name] / bandwidth:.1f} ms",
        ]
        for name in moved
    ]
    limit = measure.table(
        "forward, float32, an image | parameters | operations | at a matrix product's rate"
        " | bytes moved | at a copy's rate",
        limits,
    )
    speeds = measure.table(
        "network | precision | pass | images/s | billion operations/s"
        " | share of the matrix product's rate | times as fast as diffusers",
        rows,
    )
    measure.write(
        args.outdir,
        "network",
        f"{limit}\n\n{speeds}",
        device.type,
        network=args.network,
        images=n,
        repetitions=args.repetitions,
        parameters=parameters,
        operations_per_image={name: each for name, (_, _, each) in nets.items()},
        bytes_per_image=moved,
        copy_bytes_per_second=bandwidth,
        results=result,
    )


if __name__ == "__main__":
    main()
