"""Every path on an imitation of a GPU: nothing is refused, and samples are those of the CPU.

What the imitation sees is shown by faults that are planted in a real update.
"""

import functools

import pytest
import torch
from conftest import ROOT
from imitation import CUDA, GPU

import evaluate
import train
from diverse_sampling import method
from diverse_sampling.coupling.stratified import stratified
from diverse_sampling.exact import posterior_mean
from figures import traces
from lab import assemble, train_classifier
from worlds.moving_digits import Digits

pytestmark = pytest.mark.slow

TINY = (
    "--channels [8,16] --blocks 1 --attention [1] --head_channels 8 --patch_size 4 --batch_size 8 "
    "--digits embedded --iterations 40"
).split()
SMALLER = ["--channels", "[8]", "--attention", "[0]"]
BLOBS = ["--frames", str(ROOT / "examples" / "blobs.npz")]


def start(folder, flags, device="cuda"):
    """A training, and its updates."""
    training, _ = train.setup([*TINY, *flags, "--device", device, "--outdir", str(folder)])
    return training, iter(training)


# ---------------------------------------------------------------- what the imitation sees

PLANTED = {
    "a tensor of the host": lambda x: x + torch.ones(x.shape),
    "a product with the host": lambda x: x.flatten(1) @ torch.ones(x[0].numel(), 2),
    "a host's tensor, indexed": lambda x: torch.ones(9)[(x[:, 0, 0, 0] * 0).long()],
    ".numpy()": lambda x: x.detach().numpy(),
    "the host's generator": lambda x: torch.randn(3, generator=torch.Generator(), device=x.device),
    "the GPU's generator": lambda x: torch.randn(3, generator=torch.Generator(x.device)),
    "a kernel that is compiled": lambda x: x.flatten(2).mT[:, :, :1] @ x[:, 0, :1],
}
ALLOWED = {
    "a number of the host": lambda x: x * torch.tensor(2.0, dtype=torch.float64),
    "a number into a mask": lambda x: x.masked_fill(x > 0, 0.0),
    "an index of the host": lambda x: x[torch.tensor([0, 1])],
    "made there": lambda x: torch.full((3,), 1.0, device=x.device) + torch.zeros_like(x).sum(),
    "copies": lambda x: torch.zeros(3).to(x.device) + x.detach().cpu().sum().to(x.device),
    "a generator there": lambda x: torch.randn(
        3, generator=torch.Generator(x.device), device=x.device
    ),
}


def test_faults_that_are_planted_in_an_update_are_found_and_nothing_else(gpu, tmp_path):
    training, updates = start(tmp_path, [*SMALLER, "--attention", "[]", "--precision", "float32"])

    def errors_of(plant) -> list[str]:
        """What is found in an update with this in its network."""

        def before(module, args):
            plant(args[0])

        gpu.errors.clear()
        hook = training.net.register_forward_pre_hook(before)
        next(updates)
        hook.remove()
        return list(gpu.errors)

    for name, plant in PLANTED.items():
        found = errors_of(plant)
        assert found and all("test_device" in error for error in found), name
    for name, plant in ALLOWED.items():
        assert errors_of(plant) == [], name


def test_what_is_made_of_tensors_there_is_there_and_torch_is_as_before_afterwards():
    before = torch.cuda.is_available()
    with GPU() as gpu:
        x = torch.ones(4, 3, device="cuda", requires_grad=True)
        y = (x.to(torch.float64) @ torch.ones(3, 2, device=CUDA, dtype=torch.float64)).sum()
        y.backward()
        assert {t.device.type for t in (x, x[1:], x.detach(), y, x.grad)} == {"cuda"}
        assert x.grad.is_cuda and not x.cpu().is_cuda and gpu.errors == []
    assert torch.ones(2).device.type == "cpu" and torch.Generator().device.type == "cpu"
    assert torch.cuda.is_available() == before


# ---------------------------------------------------------------- training

TRAININGS = {
    "adam": [],
    "in parts": ["--accumulate", "2"],
    "posterior, motion, muon": "--target posterior --motion 2 --optimizer muon".split(),
    "free, two digits": "--dataset free --deterministic false --num_digits 2".split(),
    "horizontal, labels, dropout": (
        "--dataset horizontal --class_labels true --dropout 0.1 --end_at_choice true".split()
    ),
    "centered, crop, some classes": "--dataset centered --crop true --digit_classes [1,2]".split(),
    "own frames, float32": [*BLOBS, "--precision", "float32"],
    "own frames, posterior, shifted": (
        [*BLOBS, "--target", "posterior", "--augment", "dihedral_shifts"]
    ),
}


SAVED = ("adam", "posterior, motion, muon", "own frames, float32", "own frames, posterior, shifted")


@pytest.mark.parametrize("name", TRAININGS)
def test_nothing_of_an_update_is_refused(name, gpu, tmp_path):
    training, updates = start(tmp_path, TRAININGS[name])
    assert next(updates)["loss"].isfinite() and next(updates)["loss"].isfinite()
    assert {p.device for p in training.net.parameters()} == {CUDA}
    if name in SAVED:
        training.save(tmp_path)
        training.load(tmp_path / "state.safetensors")
        next(iter(training))
        training.measure_held_out()
    assert gpu.errors == []


def test_nothing_of_a_classifier_is_refused(gpu, digits):
    few = Digits(digits.images[:32], digits.labels[:32], digits.source)
    settings = train_classifier.ClassifierSettings(epochs=2, batch_size=16, channels=[8, 16])
    images = few.centred(32)[:, None]
    net = train_classifier.train(settings, images, few.labels, CUDA)
    train_classifier.accuracy(net, images, few.labels, CUDA)
    settings = train_classifier.ClassifierSettings(noisy=True, epochs=2, batch_size=16)
    noisy = train_classifier.train_noisy(settings, images, few.labels, 10, CUDA)
    train_classifier.accuracy_at(noisy, images, few.labels, CUDA)
    assert gpu.errors == []


# ---------------------------------------------------------------- evaluation

WINDOW = dict(window_min=0.3, window_max=5.0)
GUIDED = dict(pg_factor=1.0, pg_sigma_min=0.01, pg_sigma_max=80.0, **WINDOW)
EXACT = dict(denoiser="exact")
DRAWS = {
    "churn": dict(s_churn=1.0),
    "second stage here": dict(guidance="reference", second_stage="here"),
    "jacobian, IoU": GUIDED | dict(pg_kernel="iou"),
    "denoised, logdet": GUIDED | dict(pg_space="denoised", pg_kernel="logdet"),
    "x, inverse": GUIDED | dict(pg_space="x", pg_kernel="inverse"),
    "rbf_unsquared, sigma": GUIDED
    | dict(pg_kernel="rbf_unsquared", pg_bandwidth="sigma", pg_strength="sigma"),
    "annealed": GUIDED | dict(pg_anneal="both"),
    "drift": GUIDED | dict(pg_strength="drift"),
    "measured window": dict(EXACT, pg_factor=1.0),
    "cads": dict(guidance="cads"),
    **{
        name: dict(guidance=name, pg_factor=1.0)
        for name in method.names("guidance")
        if name not in ("none", "pg", "cads", "joint")
    },
    "joint": dict(EXACT, guidance="joint"),
    "mixture": EXACT | GUIDED | dict(dataset="mixture"),
    **{
        f"{name} noise": dict(noise=name, sampler="edm", sequential=1 + (name == "away"))
        for name in method.names("noise")[1:]
    },
    "simplex churn": dict(churn_noise="simplex", s_churn=1.0),
    "medoids": dict(medoids_of=2),
    "pool": dict(group_of=2),
    "unconditional": dict(GUIDED, dataset="centered", task="unconditional"),
    "labels": dict(GUIDED, dataset="horizontal"),
    "free": dict(dataset="free"),
    "own frames": dict(GUIDED, frames=BLOBS[1]),
    "own frames, exact": dict(EXACT, frames=BLOBS[1]),
    "own frames, joint": dict(EXACT, frames=BLOBS[1], guidance="joint"),
    **{
        f"{name} in sequence": dict(WINDOW, guidance=name, pg_factor=1.0, sequential=2)
        for name in ("pg", "spell")
    },
    "bfloat16": dict(GUIDED, precision="bfloat16"),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """network(flags): the file of a network that has not learned anything yet."""

    @functools.cache
    def make(*flags):
        folder = tmp_path_factory.mktemp("network")
        training, _ = start(folder, [*SMALLER, *flags], "cpu")
        for parameter in training.ema.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        training.save_model(folder)
        return str(folder / "model.safetensors")

    return make


def evaluation(network, settings, device="cuda"):
    """An evaluation of two sets of three particles."""
    values = dict(num_sets=2, num_steps=2, batch_size=3, digits="embedded", device=device)
    values |= dict(precision="float32") | settings
    if values.get("denoiser") != "exact":
        dataset = values.get("dataset", "circle_jumping")
        flags = BLOBS if "frames" in values else ["--dataset", dataset]
        if dataset == "horizontal":
            flags = [*flags, "--class_labels", "true"]
        values["checkpoint"] = network(*flags)
    return assemble.set_up(*assemble.complete(values))


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_that_of_the_cpu(name, network):
    settings = DRAWS[name]
    expected = None
    if "precision" not in settings:
        expected = evaluation(network, settings, "cpu").sampler.sample(torch.arange(2))
    with GPU() as gpu:
        job = evaluation(network, settings)
        assert job.sampler.particles_per_call() > 3
        samples = job.sampler.sample(torch.arange(2))
        job.task.measure(samples)
        assert gpu.errors == []
    assert expected is None or torch.equal(samples, expected)


def test_roll_outs_and_a_closer_look_are_not_refused(network, gpu):
    job = evaluation(network, dict(GUIDED, frames=BLOBS[1]))
    traces.trace(job, 0)
    job = evaluation(network, GUIDED)
    samples = job.sampler.sample_all(progress=False)
    assert job.sampler.roll_out(torch.arange(len(samples)), samples, 2).shape[2] == 2
    assert gpu.errors == []


def test_the_programs_run_from_training_to_samples(gpu, tmp_path, monkeypatch, undrawn):
    trained, out = tmp_path / "trained", tmp_path / "evaluated"
    argv = [*TINY, *SMALLER, "--device", "cuda", "--iterations", "4", "--log_every", "2"]
    train.main([*argv, "--save_every", "3", "--outdir", str(trained)])
    train.main(["--resume", str(trained), "--iterations", "5", "--device", "cuda"])
    flags = ["--checkpoint", str(trained / "model.safetensors"), "--device", "cuda"]
    flags += "--digits embedded --num_sets 2 --num_steps 3 --outdir".split()
    evaluate.main([*flags, str(out)])
    assert (out / "samples.npz").is_file() and gpu.errors == []


def test_no_kernel_has_to_be_compiled_for_one_direction_or_one_answer(gpu):
    def there(*shape):
        return torch.randn(*shape, device="cuda")

    stratified(there(2, 3, 1, 4, 4), there(2, 1, 1, 4, 4), [torch.Generator() for _ in range(2)])
    sigma = torch.tensor(2.0)
    one = posterior_mean(there(2, 3, 1, 4, 4), sigma, there(2, 1, 1, 4, 4))
    assert one.shape == (2, 3, 1, 4, 4) and gpu.errors == []
