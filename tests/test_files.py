"""A user's own frames, from an .npz file and from directories of PNGs."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import evaluate
import train
from config import WorldSettings
from diverse_sampling.errors import SettingError
from lab import assemble
from lab.metrics import answer_metrics, hm_iou
from worlds.own_data import load_frames

BLOBS = ROOT / "examples" / "blobs.npz"


def settings(path, **more) -> WorldSettings:
    return WorldSettings(dataset="frames", frames=str(path), **more)


@pytest.fixture
def videos(tmp_path, generator):
    """Seven sequences of five to eleven frames as PNGs, each pixel with a grey level of its own."""
    truth = []
    for i in range(7):
        frames = torch.randint(256, (5 + i, 8, 12), generator=generator, dtype=torch.uint8).numpy()
        folder = tmp_path / "videos" / f"sequence {i}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{t:03d}.png")
        truth.append(frames)
    return tmp_path / "videos", truth


def test_windows_of_png_sequences_are_what_is_in_the_files(videos, generator):
    path, truth = videos
    train_part, test_part = (
        load_frames(settings(path, num_cond_frames=2), split) for split in ("train", "test")
    )
    assert len(test_part) == 9 - 2 and len(train_part) == sum(
        len(f) - 2 for i, f in enumerate(truth) if i != 4
    )
    assert train_part.frame_shape == (8, 12)
    there = {
        np.round(frames[t : t + 3]).tobytes()
        for i, frames in enumerate(truth)
        if i != 4
        for t in range(len(frames) - 2)
    }
    drawn = (train_part.windows(500, generator).frames * 255).round().to(torch.uint8).numpy()
    assert {window.tobytes() for window in drawn} == there
    assert not train_part.windows(5, generator).choices.any()


def test_answers_are_drawn_alike_and_belong_to_their_picture(generator):
    world = load_frames(settings(BLOBS), "train")
    with np.load(BLOBS) as file:
        trained = np.flatnonzero(np.arange(len(file["frames"])) % 5 != 4)
        kept = np.delete(trained, np.s_[9::10])  # the others are for validation
        pictures, masks = file["frames"][kept] / 255, file["answers"][kept] / 255
    which = torch.full((4000,), 7)
    windows = world.windows(4000, generator, which=which)
    cond, target = windows.split(1)
    assert (cond[:, 0].numpy() == pictures[7].astype(np.float32)).all() and windows.choices[
        :, 1
    ].all()
    counts = [(target[:, 0].numpy() == mask).all((1, 2)).sum() for mask in masks[7]]
    assert sum(counts) == 4000 and min(counts) > 900
    assert (world.right_answers(torch.tensor([7]))[0, :, 0].numpy() == masks[7]).all()


@pytest.mark.parametrize("as_folder", [False, True])
def test_folders_and_npz_say_the_same(as_folder, tmp_path):
    with np.load(BLOBS) as file:
        frames, answers = file["frames"][:6], file["answers"][:6]
    path = tmp_path / ("data" if as_folder else "data.npz")
    if as_folder:
        for i in range(6):
            (path / str(i) / "answers").mkdir(parents=True)
            Image.fromarray(frames[i, 0]).save(path / str(i) / "0.png")
            for a in range(4):
                Image.fromarray(answers[i, a] > 0).save(
                    path / str(i) / "answers" / f"{a}.png"
                )  # one bit a pixel
    else:
        np.savez(
            path, frames=(frames / 255).astype(np.float32), answers=answers // 255
        )  # floats, and 0 or 1
    world = load_frames(settings(path), "train")
    each = torch.arange(5)
    kept = [0, 1, 2, 3, 5]
    torch.testing.assert_close(world.given(each), torch.from_numpy(frames[kept]) / 255)
    right = world.right_answers(each)[:, :, 0]
    assert torch.equal(right, torch.from_numpy(answers[kept]).float() / 255)


def spoil(tmp_path, how: str):
    frames, answers = np.zeros((6, 2, 8, 8), np.uint8), np.zeros((6, 3, 8, 8), np.uint8)
    frames[0, 0, 0, 0] = answers[0, 0, 0, 0] = 255
    path = tmp_path / "x.npz"
    arrays = {
        "no frames": dict(images=frames),
        "flat": dict(frames=frames[0, 0]),
        "few": dict(frames=frames[:4]),
        "sizes": dict(frames=frames, answers=answers[..., :4]),
        "counts": dict(frames=frames, answers=answers[:2]),
        "floats": dict(frames=frames / 255 + 0.5),
        "nan": dict(frames=frames * float("nan")),
        "words": dict(frames=frames.astype(str)),
        "negative": dict(frames=frames.astype(np.int16) - 1),
        "short": dict(frames=frames[:, :1]),
        "constant": dict(frames=frames * 0),
        "no mask": dict(frames=frames, answers=answers * 0),
    }
    if how == "text":
        path.write_text("not an archive")
    elif how == "empty":
        path.touch()
    elif how == "flipped":
        np.savez_compressed(
            path, frames=np.random.default_rng(0).integers(16, size=(6, 2, 32, 32), dtype=np.uint8)
        )
        damaged = bytearray(path.read_bytes())
        damaged[400:420] = bytes(20)
        path.write_bytes(damaged)
    elif how == "npy":
        (tmp_path / "x.npy").write_bytes(b"\x93NUMPY and no more")
        return tmp_path / "x.npy"
    elif how == "nowhere":
        return path
    elif how == "pngs":
        for i in range(5):
            (tmp_path / "f" / str(i)).mkdir(parents=True)
            (tmp_path / "f" / str(i) / "a.png").write_bytes(b"no picture")
        return tmp_path / "f"
    elif how == "empty folder":
        (tmp_path / "f").mkdir()
        return tmp_path / "f"
    elif how == "other sizes":
        for i in range(5):
            answers = tmp_path / "f" / str(i) / "answers"
            answers.mkdir(parents=True)
            Image.fromarray(frames[0, 0]).save(answers.parent / "a.png")
            Image.fromarray(frames[0, 0]).save(answers / "a.png")
        Image.fromarray(frames[0, 0, :4]).save(answers.parent / "b.png")
        return tmp_path / "f"
    else:
        np.savez(path, **arrays[how])
    return path


@pytest.mark.parametrize(
    "how, why",
    [
        ("nowhere", "not found: "),
        ("text", "can be read"),
        ("empty", "can be read"),
        ("flipped", "can be read"),
        ("npy", "an .npy that can be read"),
        ("no frames", "`frames` (N, T, H, W); the arrays found are `images`"),
        ("flat", "shape (N, ., H, W)"),
        ("few", "5 sequences or more; found 4"),
        ("sizes", "one size; found 8 x 4 and 8 x 8 px"),
        ("counts", "N = 6"),
        ("floats", "float64 from 0.5 to 1.5"),
        ("nan", "finite numbers in frames; found NaN"),
        ("words", "integers or floats in `frames`; found values of type <U"),
        ("short", "has 1"),
        ("constant", "frames that differ; every value is 0"),
        ("no mask", "all answers are empty"),
        ("pngs", "a PNG that can be read"),
        ("empty folder", "found an empty directory"),
        ("other sizes", "pictures of one size; found 8 x 8 and 4 x 8 px"),
        ("negative", "int16 from -1 to 254"),
    ],
)
def test_other_files_are_refused_in_one_line(how, why, tmp_path, refused):
    path = spoil(tmp_path, how)
    for main in (train.main, evaluate.main):
        exact = ["--denoiser", "exact"] if main is evaluate.main else ["--patch_size", "2"]
        line = refused(
            main,
            [
                *"--dataset frames --frames".split(),
                str(path),
                *exact,
                "--outdir",
                str(tmp_path / "run"),
            ],
        )
        assert why in line and "got" in line and str(path.parent) in line
    assert not (tmp_path / "run").exists()


def test_conflicting_settings_are_refused(refused, tmp_path):
    for argv, key in [
        (["--dataset", "frames"], "frames"),
        (["--dataset", "free", "--frames", str(BLOBS)], "frames"),
        (["--dataset", "frames", "--frames", str(BLOBS), "--class_labels", "true"], "class_labels"),
        (
            [
                *"--dataset frames --frames".split(),
                str(BLOBS),
                *"--channels [8,8,8,8] --patch_size 8".split(),
            ],
            "frames",
        ),
    ]:
        assert f"{key}: " in refused(train.main, [*argv, "--outdir", str(tmp_path / "run")])
    assert "pg_features: " in refused(
        evaluate.main,
        [
            *"--dataset frames --frames".split(),
            str(BLOBS),
            *"--denoiser exact --pg_features classifier".split(),
        ],
    )


def test_metrics_of_given_answers_are_exact_on_constructed_sets():
    with np.load(BLOBS) as file:
        answers = torch.from_numpy(file["answers"][:5]).float() / 255
    alike = torch.full((4,), 0.25, dtype=torch.float64)
    perfect = answer_metrics(answers, answers, alike)
    assert perfect["hm_iou"]["mean"] == perfect["mean_iou"]["mean"] == 1
    assert perfect["quality"]["mean"] == pytest.approx(0, abs=1e-3)
    assert perfect["ged"]["mean"] == pytest.approx(0, abs=1e-6)
    one = answer_metrics(answers[:, :1].expand(-1, 4, -1, -1), answers, alike)
    assert one["mean_iou"]["mean"] == 1 and one["hm_iou"]["mean"] < 0.9 and one["ged"]["mean"] > 0.1
    # Two experts who agree are one right answer.
    assert hm_iou(answers[:, :2], answers[:, [0, 1, 1, 0]]).tolist() == [1] * 5


def test_guided_sets_hold_more_of_the_answers_on_the_exact_denoiser():
    argv = [
        *"--dataset frames --frames".split(),
        str(BLOBS),
        *"--denoiser exact --batch_size 4 --num_sets 24 --device cpu".split(),
    ]
    alone, guided = (
        assemble.evaluation([*argv, *extra]).run(progress=False)[2]
        for extra in ([], ["--pg_factor", "3"])
    )
    assert alone["hm_iou"]["ci95"][1] < 0.95 and guided["hm_iou"]["mean"] > 0.99
    assert guided["mean_iou"]["mean"] > 0.99 and guided["ged"]["mean"] < alone["ged"]["mean"]


@pytest.mark.slow
def test_the_shipped_network_holds_more_of_the_answers_when_guided():
    argv = ["--checkpoint", "blobs", "--batch_size", "4", "--num_sets", "10", "--device", "cpu"]
    alone, guided = (
        assemble.evaluation([*argv, *extra]).run(progress=False)[2]
        for extra in ([], ["--pg_factor", "3"])
    )
    assert guided["hm_iou"]["ci95"][0] > alone["hm_iou"]["ci95"][1]
    assert guided["mean_iou"]["mean"] > alone["mean_iou"]["mean"] - 0.02 > 0.9


def test_a_model_of_ones_own_videos_from_start_to_end(videos, tmp_path, capsys):
    """Not square, of different lengths; the picture and the arrays hold what was sampled."""
    path, _ = videos
    model = tmp_path / "model"
    train.main(
        [
            *"--dataset frames --frames".split(),
            str(path),
            *"--num_cond_frames 3 --channels [16] --blocks 1 --attention []".split(),
            *"--patch_size 4 --iterations 3 --batch_size 4 --device cpu --outdir".split(),
            str(model),
        ]
    )
    evaluate.main(
        [
            "--checkpoint",
            str(model / "model.safetensors"),
            *"--num_sets 2 --batch_size 3 --num_steps 4 --pg_factor 1 --device cpu".split(),
            "--outdir",
            str(tmp_path / "run"),
        ]
    )
    out = capsys.readouterr().out
    assert "mean IoU" in out and "GED" in out and "(test split)" in out
    with np.load(tmp_path / "run" / "samples.npz") as file:
        assert file["samples"].shape == (2, 3, 8, 12) and file["cond"].shape == (2, 3, 8, 12)
        assert file["answers"].shape == (2, 1, 8, 12)
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["settings"]["frames"] == str(path) and len(result["hm_iou"]["per_set"]) == 2


def test_frames_imply_their_world():
    settings, _ = train.parse(["--frames", str(BLOBS)])
    assert settings.world.dataset == "frames"
    for denoiser in (["--denoiser", "exact"], ["--checkpoint", "blobs"]):
        evaluation, _ = assemble.parse([*denoiser, "--frames", str(BLOBS)])
        assert evaluation.world.dataset == "frames"
        assert evaluation.world.frames == str(BLOBS)


def test_a_path_that_is_not_here_is_looked_for_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(load_frames(settings("examples/blobs.npz"), "test")) == 600


@pytest.mark.parametrize(
    "given, tried",
    [
        ("none.npz", ["{here}/none.npz", "{code}/none.npz"]),
        ("some/none.npz", ["{here}/some/none.npz", "{code}/some/none.npz"]),
        ("~/none.npz", ["{home}/none.npz"]),
        (
            "~no-such-user/none.npz",
            ["{here}/~no-such-user/none.npz", "{code}/~no-such-user/none.npz"],
        ),
        ("/none.npz", ["/none.npz"]),
    ],
)
def test_a_path_that_is_not_found_is_reported_with_all_places(given, tried, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(SettingError) as error:
        load_frames(settings(given), "test")
    places = dict(here=tmp_path / "here", home=tmp_path / "home", code=ROOT)
    expected = ", ".join(place.format(**places) for place in tried)
    assert str(error.value).startswith(f"frames: got {given!r}; accepted: an .npz or .npy file")
    assert str(error.value).endswith(f"not found: {expected}")
