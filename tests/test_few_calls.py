"""Few calls: the exact student, new noise before each call, starts away from what there is."""

import pytest
import torch
from conftest import ROOT

import evaluate
import train
from diverse_sampling import few_calls
from diverse_sampling.coupling.away import SHIFT, away
from diverse_sampling.decisions import Decisions
from diverse_sampling.exact import exact_denoiser
from diverse_sampling.steps import edm_schedule, integrate, karras_sigmas
from lab import assemble, checkpoint

ANSWERS = torch.eye(8).reshape(1, 8, 1, 4, 2) * 6 - 1  # far apart


def draw(generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def found(samples: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The nearest answer of each sample, (G, B), all of which have to be answers."""
    distance, which = torch.cdist(samples.flatten(2), answers.flatten(2)).min(-1)
    assert float(distance.max()) < 1e-3
    return which


# ---------------------------------------------------------------- the exact student


@pytest.mark.parametrize("sigma", [0.3, 2.0, 80.0])
def test_the_student_of_a_gaussian_is_known(sigma, generator):
    """The ODE takes N(m, sd^2 + s^2) to N(m, sd^2) by a scaling around m."""
    sd, mean = 0.5, 0.2
    denoise = lambda x, s: mean + (x - mean) * sd**2 / (sd**2 + s**2)
    x = mean + (sd**2 + sigma**2) ** 0.5 * draw(generator, 2, 3, 1, 4, 4)
    student = few_calls.exact_student(denoise, steps=60)
    end = student(x, torch.tensor(sigma))
    expected = mean + (x - mean) * sd / (sd**2 + sigma**2) ** 0.5
    torch.testing.assert_close(end, expected, rtol=0.01, atol=0.01)


def test_the_student_returns_answers_and_is_the_same_along_a_path(generator):
    denoise = exact_denoiser(ANSWERS.expand(50, -1, -1, -1, -1))
    student = few_calls.exact_student(denoise)
    x = 80 * draw(generator, 50, 8, 1, 4, 2)
    path: list[dict] = []
    integrate(denoise, x, edm_schedule(karras_sigmas(40, 0.02)), callback=path.append)
    ends = [found(student(step["x_hat"], step["sigma_hat"]), ANSWERS) for step in path[::8]]
    for end in ends[1:]:
        assert float((end == ends[0]).float().mean()) > 0.98  # but next to a border
    assert len(ends[0].unique()) == 8


def test_new_noise_before_each_call_keeps_how_often_answers_are_drawn(generator):
    prior = torch.tensor([0.7, 0.3])
    denoise = exact_denoiser(ANSWERS[:, :2], prior.log())
    levels = torch.tensor([80.0, 4.0, 1.5], dtype=torch.float64)
    x = 80 * draw(generator, 1, 4000, 1, 4, 2)
    samples = integrate(
        few_calls.exact_student(denoise),
        x,
        few_calls.renewed_schedule(levels),
        noise=lambda: draw(generator, *x.shape),
    )
    share = float((found(samples, ANSWERS[:, :2]) == 0).float().mean())
    assert share == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)


def test_each_call_sees_the_last_sample_and_noise_of_its_level(generator):
    levels = torch.tensor([80.0, 5.0, 0.5], dtype=torch.float64)
    called = []

    def student(x, sigma):
        called.append((float(sigma), x))
        return torch.full_like(x, float(len(called)))

    x = 80 * draw(generator, 1, 100, 1, 4, 4)
    noise = draw(generator, *x.shape)
    schedule = few_calls.renewed_schedule(levels)
    samples = integrate(student, x, schedule, noise=lambda: noise)
    assert [sigma for sigma, _ in called] == pytest.approx(levels.tolist())
    assert schedule.calls == 3 and torch.equal(samples, torch.full_like(x, 3.0))
    for number, (sigma, seen) in enumerate(called[1:], start=1):
        torch.testing.assert_close(seen, number + sigma * noise, rtol=0.02, atol=0.02)


def test_levels_fall_from_the_first_to_where_nothing_is_left_to_decide():
    curve = Decisions([80.0, 10.0, 1.0, 0.1], [0.0, 0.1, 0.9, 1.0], 1.0)
    assert few_calls.student_levels(curve, 1).tolist() == [80.0]
    levels = few_calls.student_levels(curve, 4)
    assert levels[0] == 80 and bool((levels.diff() < 0).all()) and levels[-1] > curve.end
    torch.testing.assert_close(levels[2] / levels[1], levels[3] / levels[2])


# ---------------------------------------------------------------- starts away from what there is


def test_noise_away_is_shifted_along_what_was_drawn_too_often_alone(generator):
    earlier, mean = draw(generator, 3, 4, 1, 8, 8), draw(generator, 3, 1, 1, 8, 8)
    noise = draw(generator, 3, 5, 1, 8, 8)
    shift = noise - away(noise, earlier, mean)
    often = (earlier.mean(1) - mean[:, 0]).flatten(1)
    torch.testing.assert_close(
        shift.flatten(2),
        (SHIFT * often / often.norm(dim=1, keepdim=True))[:, None].expand(3, 5, 64),
    )
    assert torch.equal(away(noise, mean, mean), noise)  # as often as it should be


def test_starts_away_find_more_of_an_exact_students_answers(generator):
    G = 200
    answers = ANSWERS.expand(G, -1, -1, -1, -1)
    student = few_calls.exact_student(exact_denoiser(answers))
    top = torch.tensor(80.0)
    first = student(top * draw(generator, G, 4, 1, 4, 2), top)
    noise = draw(generator, G, 4, 1, 4, 2)

    def modes(second: torch.Tensor) -> float:
        which = found(torch.cat([first, student(top * second, top)], 1), answers)
        return sum(len(row.unique()) for row in which) / G

    independent = modes(noise)
    assert independent == pytest.approx(5.25, abs=0.3)
    assert modes(away(noise, first, answers.mean(1, keepdim=True))) > independent + 0.4


# ---------------------------------------------------------------- a trained student


STUDENT = "--digits embedded --device cpu --lr 0.003 --warmup 2 --log_every 5 --batch_size 16"
NETWORK = "--channels [16,16] --blocks 1 --attention [1] --head_channels 8 --patch_size 4"


QUICK = "--num_sets 2 --batch_size 2 --device cpu".split()


def of_teacher(tiny_model, *more: str) -> list[str]:
    teacher = ["--teacher", str(tiny_model / "model.safetensors")]
    return [*STUDENT.split(), *NETWORK.split(), *teacher, *more]


def test_a_student_starts_as_its_teacher_and_learns(tiny_model, tmp_path, undrawn):
    train.main(of_teacher(tiny_model, "--iterations", "40", "--outdir", str(tmp_path)))
    lines = train.read_log(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert sum(losses[-3:]) / 3 < 0.9 * losses[0]
    student, metadata = checkpoint.load_denoiser(tmp_path / "model.safetensors")
    teacher, _ = checkpoint.load_denoiser(tiny_model / "model.safetensors")
    assert metadata["settings"]["teacher"] == str(tiny_model / "model.safetensors")
    assert student.sigma_data == teacher.sigma_data and student.box == teacher.box


def test_the_targets_are_where_the_teachers_paths_end(tmp_path):
    config = str(ROOT / "configs" / "circle_jumping_student.yaml")
    few = ["--digits", "embedded", "--device", "cpu", "--batch_size", "64"]
    training, _ = train.setup(["--config", config, *few, "--outdir", str(tmp_path)])
    x, sigma, target, cond, _ = training.batch()
    assert len(x) == 64 and len(sigma.unique()) == 8 and float(sigma.max()) == 80
    assert float(x[sigma == 80].std()) == pytest.approx(80, rel=0.05)
    with torch.no_grad():
        last = sigma == sigma.min()
        ends = training.teacher(x[last], sigma[last], cond[last])
        torch.testing.assert_close(ends, target[last], rtol=1e-4, atol=1e-4)
        # A finer solver ends near there, and far from the mean that D is at this level.
        middle = sigma == sigma.unique()[5]
        denoise = training.teacher.bind(cond[middle])
        at = sigma[middle][0]
        fine = edm_schedule(karras_sigmas(60, 0.1, float(at)))
        end = integrate(denoise, x[middle][:, None], fine)[:, 0]
        mean = denoise(x[middle][:, None], at)[:, 0]
    apart, blurred = ((each - target[middle]).flatten(1).norm(dim=1) for each in (end, mean))
    assert float(apart.mean()) < 0.5 * float(blurred.mean())


@pytest.fixture
def student(tiny_model, tmp_path, undrawn, capsys):
    """The file of a student of a few updates."""
    train.main(of_teacher(tiny_model, "--iterations", "2", "--outdir", str(tmp_path / "run")))
    capsys.readouterr()
    return str(tmp_path / "run" / "model.safetensors")


def test_evaluate_samples_a_student_in_the_calls_that_it_is_given(student, tiny_model):
    network = ["--checkpoint", student, *QUICK]
    for flags, calls in ([], 4), (["--num_steps", "1"], 1), (["--price", "3"], 3):
        evaluation = assemble.evaluation([*network, *flags])
        _, _, result = evaluation.run(progress=False)
        assert result["network_calls"] == calls and evaluation.settings.sampler.sampler == "student"
    teacher = assemble.evaluation(["--checkpoint", str(tiny_model / "model.safetensors"), *QUICK])
    assert evaluation.sampler.decisions == teacher.sampler.decisions


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--sampler edm", "sampler: got 'edm'; accepted: student"),
        ("--pg_factor 5", "sampler: got 'student'; accepted: another with guidance or pool"),
        ("--pool 2", "sampler: got 'student'; accepted: another with guidance or pool"),
        ("--noise away --sequential 2", "noise: got 'away'; accepted: any other with a student"),
    ],
)
def test_what_a_student_cannot_do_is_refused(flags, line, student, refused):
    network = ["--checkpoint", student, *QUICK]
    assert line in refused(evaluate.main, [*network, *flags.split()])


def test_a_denoiser_is_no_student(tiny_model, refused):
    network = ["--checkpoint", str(tiny_model / "model.safetensors"), *QUICK]
    line = "sampler: got 'student'; accepted: edm, edm_noised or window"
    assert line in refused(evaluate.main, [*network, "--sampler", "student"])


def test_a_student_continues_where_it_was_stopped(tiny_model, tmp_path, undrawn):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    constant = ["--lr_schedule", "constant"]
    train.main(of_teacher(tiny_model, *constant, "--iterations", "6", "--outdir", str(whole)))
    train.main(of_teacher(tiny_model, *constant, "--iterations", "3", "--outdir", str(parts)))
    train.main(["--resume", str(parts), "--iterations", "6"])
    one, two = (checkpoint.read_tensors(each / "state.safetensors") for each in (whole, parts))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--batch_size 12", "batch_size: got 12; accepted: a multiple of 8"),
        ("--channels [16,32]", "accepted: a network of these settings"),
        ("--target posterior", "accepted: none with target posterior"),
    ],
)
def test_what_is_no_student_is_refused(flags, line, tiny_model, tmp_path, refused):
    argv = of_teacher(tiny_model, *flags.split(), "--outdir", str(tmp_path / "run"))
    assert line in refused(train.main, argv)


def test_a_teacher_that_is_not_there_is_refused(tmp_path, refused):
    argv = [*STUDENT.split(), "--teacher", "nobody", "--outdir", str(tmp_path / "run")]
    assert "nobody was not found" in refused(train.main, argv)
