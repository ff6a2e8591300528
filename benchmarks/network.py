"""The U-Net's forward pass and training step, compared with a UNet2DModel of diffusers.

Both have the same widths, depths and attention.

    pip install -r requirements-bench.txt
    python benchmarks/network.py                      # float32 on a CPU; on a GPU bfloat16 too

Also the hardware limits of a forward pass: operations and bytes per image, and the rates at which
this machine multiplies matrices and copies memory. With and without torch.compile.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count, ModelSettings, build  # noqa: E402
from devices import pick_device  # noqa: E402

MATRIX_SIDE = (
    2048  # of the square matrices whose product is the rate that a network is compared with
)
COPIED = 2**26  # numbers, so many that no cache holds them


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
    outdir: str = "runs/benchmark-network"
    """folder for the results"""


def settings_of(config: str) -> dict:
    """The whole record of the settings of a training config."""
    import train

    settings, _ = train.parse(["--config", config])
    return settings.record()


def peer(settings: dict):
    """diffusers' U-Net of the same widths, depths and attention."""
    from diffusers import UNet2DModel

    levels = range(len(settings["channels"]))
    down = tuple(
        "AttnDownBlock2D" if level in settings["attention"] else "DownBlock2D" for level in levels
    )
    up = tuple(
        "AttnUpBlock2D" if level in settings["attention"] else "UpBlock2D"
        for level in reversed(levels)
    )
    return UNet2DModel(
        sample_size=settings["image_size"],
        in_channels=settings["num_cond_frames"] + 1,
        out_channels=1,
        block_out_channels=tuple(settings["channels"]),
        layers_per_block=settings["blocks"],
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=settings["head_channels"],
        norm_num_groups=math.gcd(32, *settings["channels"]),
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


def main(argv: list[str] | None = None) -> None:
    args = make_parser(NetworkBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(
        argv
    )
    import torch

    import checkpoint

    device, n = pick_device(args.device), args.images
    settings = settings_of(args.network)
    torch.manual_seed(0)
    model = build(ModelSettings, settings)
    ours = checkpoint.make_denoiser((settings["num_cond_frames"], 1), model, 0.5).unet.to(device)
    theirs = peer(settings).to(device)
    side, channels = settings["image_size"], settings["num_cond_frames"] + 1
    x = torch.randn(n, channels, side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )
    c_noise = torch.randn(n, device=device)
    nets = {
        "this project": (lambda: ours(x, c_noise)[0]),
        "diffusers UNet2DModel": (lambda: theirs(x, c_noise).sample),
    }
    with torch.no_grad():
        moved = {name: traffic(call) / n for name, call in nets.items()}
    counted = {
        "this project": (ours, operations(nets["this project"]) / n),
        "diffusers UNet2DModel": (theirs, operations(nets["diffusers UNet2DModel"]) / n),
    }
    if args.compile:
        import copy

        compiled = copy.deepcopy(ours)
        compiled.compile()
        nets["this project, compiled"] = lambda: compiled(x, c_noise)[0]
        counted["this project, compiled"] = (compiled, counted["this project"][1])

    def forward(call, bf16):
        def run():
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                call()

        return run

    def step(name, call, bf16):
        def run():
            counted[name][0].zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = call().float().square().mean()
            loss.backward()

        return run

    square = (MATRIX_SIDE, MATRIX_SIDE)
    matrices = {
        False: torch.randn(square, device=device),
        True: torch.randn(square, device=device, dtype=torch.bfloat16),
    }
    # Written to, so that every page of both is memory of its own.
    source, target = (torch.ones(COPIED, device=device) for _ in range(2))
    # (what, precision, pass) -> what to run, and its operations.
    runs: dict[tuple[str, str, str], Callable[[], Any]] = {
        ("copy", "", ""): lambda: target.copy_(source)
    }
    works: dict[tuple[str, str, str], float] = {}
    for bf16 in (False, True):
        precision = "bfloat16" if bf16 else "float32"
        matrix = matrices[bf16]
        runs["matrix product", precision, ""] = partial(torch.matmul, matrix, matrix)
        works["matrix product", precision, ""] = 2 * MATRIX_SIDE**3
        for name, call in nets.items():
            runs[name, precision, "forward"] = forward(call, bf16)
            works[name, precision, "forward"] = n * counted[name][1]
            runs[name, precision, "forward and backward"] = step(name, call, bf16)
            works[name, precision, "forward and backward"] = 3 * n * counted[name][1]
    times = measure.interleaved(runs, args.repetitions, device.type)
    rows, result = [], {}
    bandwidth = measure.spread([2 * 4 * COPIED / t for t in times.pop(("copy", "", ""))])["median"]
    for key in times:
        what, precision, kind = key
        rates = measure.spread([works[key] / t / 1e9 for t in times[key]])
        share = measure.spread(
            [
                works[key] / a / (2 * MATRIX_SIDE**3 / b)
                for a, b in zip(times[key], times["matrix product", precision, ""])
            ]
        )
        faster = (
            measure.ratio(times, ("diffusers UNet2DModel", precision, kind), key) if kind else None
        )
        images = n / measure.spread(times[key])["median"] if kind else None
        result[", ".join(filter(None, key))] = dict(
            gigaflops=rates,
            share_of_matrix_product=share,
            times_as_fast_as_diffusers=faster,
            images_per_second=images,
        )
        rows.append(
            [
                what,
                precision,
                kind,
                f"{images:.0f}" if kind else "",
                f"{rates['median']:.0f}",
                f"{share['median']:.2f}",
                measure.shown(faster) if faster and "diffusers" not in what else "",
            ]
        )
    parameters = {
        name: sum(p.numel() for p in net.parameters()) for name, (net, _) in counted.items()
    }
    product = measure.spread(
        [2 * MATRIX_SIDE**3 / t for t in times["matrix product", "float32", ""]]
    )["median"]
    floor = measure.table(
        [
            "forward, float32, an image",
            "parameters",
            "operations",
            "at a matrix product's rate",
            "bytes moved",
            "at a copy's rate",
        ],
        [
            [
                name,
                f"{parameters[name] / 1e6:.1f} M",
                f"{counted[name][1] / 1e9:.2f} billion",
                f"{1e3 * counted[name][1] / product:.1f} ms",
                f"{moved[name] / 1e6:.0f} MB",
                f"{1e3 * moved[name] / bandwidth:.1f} ms",
            ]
            for name in moved
        ],
    )
    text = measure.table(
        [
            "network",
            "precision",
            "pass",
            "images/s",
            "billion operations/s",
            "share of the matrix product's rate",
            "times as fast as diffusers",
        ],
        rows,
    )
    measure.write(
        args.outdir,
        "network",
        f"{floor}\n\n{text}",
        device.type,
        network=args.network,
        images=n,
        repetitions=args.repetitions,
        parameters=parameters,
        operations_per_image={name: c for name, (_, c) in counted.items()},
        bytes_per_image=moved,
        copy_bytes_per_second=bandwidth,
        results=result,
    )


if __name__ == "__main__":
    main()
