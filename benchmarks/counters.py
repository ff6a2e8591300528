"""What an update and a network call ask of a GPU, counted without one: operations, bytes and waits.

    python benchmarks/counters.py

The programs run on an imitation of a GPU (imitation.py). Bytes are those that operations read and
write, each by itself; they are counted with small batches and grow with the batch. Kernels are
those that torch.compile makes of a network call for the CPU, in float32; a GPU's are others.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count  # noqa: E402

CHECKPOINT = "circle_jumping"  # the network that is called
DRAWS = {"independent": "0", "through the Jacobian": "3"}  # the strength of guidance


@dataclass
class CounterBenchmarkSettings:
    """Counters"""

    reference: str = "configs/circle_jumping.yaml"
    """the training config of the reference network"""
    small: str = "configs/circle_jumping_small.yaml"
    """the training config of a small one"""
    batch_size: Count = 8
    """images of an update"""
    updates: Count = 2
    """that are counted"""
    num_steps: Count = 3
    """of a sampler"""
    compile: bool = True
    """count kernels too, which takes minutes"""
    before: Optional[str] = None
    """a counters.json of an earlier version, to be shown beside"""
    outdir: str = "runs/benchmark-counters"
    """folder for the results"""


def of_updates(config: str, args) -> dict[str, float]:
    """Counts of an update of a training."""
    from imitation import GPU

    import train

    with tempfile.TemporaryDirectory() as folder, GPU() as gpu:
        flags = ["--config", config, "--digits", "embedded", "--batch_size", str(args.batch_size)]
        training, _ = train.setup([*flags, "--device", "cuda", "--outdir", folder])
        steps = iter(training)
        next(steps)  # makes the optimizer's state
        with gpu.counting() as counts:
            for _ in range(args.updates):
                next(steps)
    assert not gpu.errors, gpu.errors
    return dict(
        waits=counts.waits / args.updates,
        operations=counts.operations / args.updates,
        bytes_per_image=counts.bytes / args.updates / args.batch_size,
        copied_per_image=counts.moved / args.updates / args.batch_size,
    )


def of_draws(factor: str, args) -> tuple[dict[str, float], dict[str, float]]:
    """Counts of a network call, with the guidance around it, and the waits of a whole draw."""
    import torch
    from imitation import GPU, Counts

    import assemble

    with GPU() as gpu:
        flags = f"--checkpoint {CHECKPOINT} --digits embedded --device cuda --num_sets 2".split()
        flags += f"--pg_factor {factor} --num_steps {args.num_steps}".split()
        flags += "--window_min 0.3 --window_max 5 --pg_sigma_min 0.01 --pg_sigma_max 80".split()
        sampler = assemble.evaluation(flags).sampler
        steps: list[Counts] = []
        zero = gpu.counts - gpu.counts
        with gpu.counting() as whole:
            sampler.sample(torch.arange(2), lambda step: steps.append(gpu.counts - zero))
    assert not gpu.errors, gpu.errors
    particles = 2 * sampler.batch_size
    between = steps[1] - steps[0]
    calls = 1 + int(sampler.schedule.corrected[1])
    call = dict(
        waits=between.waits / calls,
        operations=between.operations / calls,
        bytes_per_image=between.bytes / calls / particles,
        copied_per_image=between.moved / calls / particles,
    )
    return call, dict(waits=whole.waits)


# A line of compiled code that calls a kernel: one that is fused of operations, or a library's.
KERNEL = re.compile(
    r"^\s+(?:\w+ = )?(?:cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE
)


def of_compiled_calls() -> dict[str, int]:
    """Kernels of a network call, and of one with its gradient, by the names of DRAWS."""
    import torch
    from torch._inductor.utils import run_and_get_code

    import checkpoint

    path = ROOT / "checkpoints" / f"{CHECKPOINT}.safetensors"
    network, _ = checkpoint.load_denoiser(path, torch.device("cpu"))
    network.compile_for_any_size()
    denoise = network.bind(torch.zeros(2, 1, 32, 32))
    x = torch.zeros(2, 3, 1, 32, 32, requires_grad=True)
    sigma = torch.tensor(1.0)

    def kernels(run: Callable[[], object]) -> int:
        return sum(len(KERNEL.findall(code)) for code in run_and_get_code(run)[1])

    with torch.no_grad():
        alone = kernels(lambda: denoise(x, sigma))
    both = kernels(lambda: torch.autograd.grad(denoise(x, sigma).sum(), x))
    return dict(zip(DRAWS, (alone, both)))


def main(argv: list[str] | None = None) -> None:
    args = make_parser(CounterBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(
        argv
    )
    results: dict[str, dict[str, float]] = {
        "update, reference network": of_updates(args.reference, args),
        "update, small network": of_updates(args.small, args),
    }
    for name, factor in DRAWS.items():
        results[f"network call, {name}"], results[f"draw, {name}"] = of_draws(factor, args)
    if args.compile:
        for name, count in of_compiled_calls().items():
            results[f"network call, {name}"]["kernels"] = count
    earlier = json.loads(Path(args.before).read_text())["results"] if args.before else {}
    header = [
        "what",
        "waits",
        "operations",
        "bytes an image",
        "of these by casts and layout copies",
        "kernels, compiled",
    ]
    rows = [[name, *cells(each, earlier.get(name))] for name, each in results.items()]
    text = measure.table(header, rows)
    if earlier:
        text += "\n\nIn brackets: an earlier version."
    measure.write(args.outdir, "counters", text, batch_size=args.batch_size, results=results)


SHOWN = {
    "waits": lambda number: f"{number:g}",
    "operations": lambda number: f"{number:,.0f}",
    "bytes_per_image": lambda number: f"{number / 1e6:,.1f} MB",
    "copied_per_image": lambda number: f"{number / 1e6:,.1f} MB",
    "kernels": lambda number: f"{number}",
}


def cells(counts: dict[str, float], before: dict[str, float] | None) -> list[str]:
    """The counts of one row as text, those before in brackets."""
    row = []
    for key, shown in SHOWN.items():
        text = shown(counts[key]) if key in counts else ""
        row.append(f"{text} ({shown(before[key])})" if before and key in before else text)
    return row


if __name__ == "__main__":
    main()
