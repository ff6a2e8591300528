"""A user's own frames, from an .npz file and from directories of PNGs."""

import io
import zipfile

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
EXACT = ["--denoiser", "exact"]


def settings(path, **more) -> WorldSettings:
    return WorldSettings(dataset="frames", frames=str(path), **more)


def test_windows_of_png_sequences_are_what_is_in_the_files(tmp_path, generator):
    """Seven sequences of five to eleven frames, each pixel with a grey level of its own."""
    truth = []
    for i in range(7):
        frames = torch.randint(256, (5 + i, 8, 12), generator=generator, dtype=torch.uint8).numpy()
        folder = tmp_path / "videos" / f"sequence {i}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{t:03d}.png")
        truth.append(frames)
    train_part, test_part = (
        load_frames(settings(tmp_path / "videos", num_cond_frames=2), split)
        for split in ("train", "test")
    )
    del truth[4]  # for the test
    assert len(test_part) == 9 - 2 and len(train_part) == sum(len(f) - 2 for f in truth)
    assert train_part.frame_shape == (8, 12)
    there = {f[t : t + 3].tobytes() for f in truth for t in range(len(f) - 2)}
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


FRAMES, ANSWERS = np.zeros((6, 2, 8, 8), np.uint8), np.zeros((6, 3, 8, 8), np.uint8)
FRAMES[::2, 0, 0, 0] = ANSWERS[0, 0, 0, 0] = 255
ARRAYS = [
    (dict(images=FRAMES), "`frames` (N, T, H, W); the arrays found are `images`"),
    (
        dict(frames=FRAMES[0, 0]),
        "`frames` (N, T, H, W), or with an axis of 3 colours; it has shape (8, 8)",
    ),
    (dict(frames=FRAMES[:4]), "5 sequences or more; found 4"),
    (dict(frames=FRAMES, answers=ANSWERS[..., :4]), "one size; found 8 x 4 and 8 x 8 px"),
    (dict(frames=FRAMES, answers=ANSWERS[:2]), "N = 6"),
    (dict(frames=FRAMES * float("nan")), "finite numbers in frames; found NaN"),
    (dict(frames=FRAMES.astype(str)), "integers or floats in `frames`; found values of type <U"),
    (dict(frames=np.array([print] * 6, dtype=object)), "can be read (Object arrays cannot be"),
    (dict(frames=FRAMES.astype(np.int16) - 1), "int16 from -1 to 254"),
    (dict(frames=FRAMES[:, :1]), "has 1"),
    (dict(frames=FRAMES * 0), "frames that differ; every value is 0"),
    (dict(frames=FRAMES, answers=ANSWERS * 0), "all answers are empty"),
]


def as_bytes(save, *values, **more) -> bytes:
    """What a function writes to a file."""
    file = io.BytesIO()
    save(file, *values, **more)
    return file.getvalue()


def flipped() -> bytes:
    noise = np.random.default_rng(0).integers(16, size=(6, 2, 32, 32), dtype=np.uint8)
    content = as_bytes(np.savez_compressed, frames=noise)
    return content[:400] + bytes(20) + content[420:]


def huge() -> bytes:
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': "
    header += b"(1000000, 1000, 1000, 100), }"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("frames.npy", header.ljust(127) + b"\n")
    return file.getvalue()


PICTURE = Image.fromarray(FRAMES[0, 0])
PNG = as_bytes(PICTURE.save, "png")
STACK = as_bytes(PICTURE.save, "tiff", save_all=True, append_images=[PICTURE] * 2)
CASES = {f"{i}/{name}": PNG for i in range(5) for name in ("a.png", "answers/a.png")}
FILES = [
    ("x.npz", b"not an archive", "can be read"),
    ("x.npz", b"", "can be read"),
    ("x.npz", flipped(), "can be read"),
    ("x.npz", huge(), "can be read ("),
    ("x.npy", b"\x93NUMPY and no more", "can be read"),
    (
        "d.h5",
        b"\x89HDF\r\n\x1a\n",
        "arrays in .npz and .npy, pictures in a directory; np.savez writes",
    ),
    ("d.png", PNG, "pictures in a directory"),
    ("empty", {}, "an empty directory"),
    ("d", {f"{i}.dcm": b"DICM" for i in range(12)}, "d/0.dcm'; accepted: pictures (PNG"),
    ("d", {f"{i}/a.png": b"no picture" for i in range(5)}, "a PNG that can be read"),
    ("d", CASES | {"3/a.png": as_bytes(PICTURE.save, "jpeg")}, "3/a.png'; accepted: a PNG that"),
    ("d", CASES | {"3/a.tif": STACK}, "other names than 3/a.png, which is there too"),
    ("d", {f"{i}/a.tif": STACK for i in range(5)}, "one picture a file; it holds 3"),
    (
        "d",
        CASES | {"4/a.png": as_bytes(Image.fromarray(FRAMES[0, 0, :4]).save, "png")},
        "pictures of one size; found 8 x 8 and 4 x 8 px",
    ),
]


def refusal(path) -> str:
    with pytest.raises(SettingError) as error:
        load_frames(settings(path), "train")
    line = str(error.value)
    assert "got" in line and str(path.parent) in line and "\n" not in line
    return line


@pytest.mark.parametrize("arrays, why", ARRAYS)
def test_other_arrays_are_refused_with_the_reason(arrays, why, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    assert why in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("name, content, why", FILES)
def test_other_files_are_refused_with_the_reason(name, content, why, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.mkdir()
        for inside, data in content.items():
            (path / inside).parent.mkdir(parents=True, exist_ok=True)
            (path / inside).write_bytes(data)
    assert why in refusal(path)


def test_a_refused_file_ends_both_commands_before_anything_is_written(tmp_path, refused):
    run = ["--outdir", str(tmp_path / "run")]
    for main, more in ((train.main, ["--patch_size", "2"]), (evaluate.main, EXACT)):
        line = refused(main, ["--frames", str(tmp_path / "x.npz"), *more, *run])
        assert "not found: " in line and "got" in line and str(tmp_path) in line
    assert not (tmp_path / "run").exists()


def test_conflicting_settings_are_refused(refused, tmp_path):
    run = ["--outdir", str(tmp_path / "run")]
    for flags, key in [
        ("--dataset frames", "frames"),
        (f"--dataset free --frames {BLOBS}", "frames"),
        (f"--frames {BLOBS} --class_labels true", "class_labels"),
        (f"--frames {BLOBS} --channels [8,8,8,8] --patch_size 8", "frames"),
    ]:
        assert f"{key}: " in refused(train.main, [*flags.split(), *run])


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


def guided_and_not(*argv) -> tuple[dict, dict]:
    """Results of independent sets of four, and of guided ones."""
    argv = [*argv, "--batch_size", "4", "--device", "cpu"]
    flags = ([], ["--pg_factor", "3"])
    return tuple(assemble.evaluation([*argv, *more]).run(progress=False)[2] for more in flags)


def test_guided_sets_hold_more_of_the_answers_on_the_exact_denoiser():
    alone, guided = guided_and_not("--frames", str(BLOBS), *EXACT, "--num_sets", "24")
    assert alone["hm_iou"]["ci95"][1] < 0.95 and guided["hm_iou"]["mean"] > 0.99
    assert guided["mean_iou"]["mean"] > 0.99 and guided["ged"]["mean"] < alone["ged"]["mean"]


@pytest.mark.slow
def test_the_shipped_network_holds_more_of_the_answers_when_guided():
    alone, guided = guided_and_not("--checkpoint", "blobs", "--num_sets", "10")
    assert guided["hm_iou"]["ci95"][0] > alone["hm_iou"]["ci95"][1]
    assert guided["mean_iou"]["mean"] > alone["mean_iou"]["mean"] - 0.02 > 0.9


def test_frames_imply_their_world():
    settings, _ = train.parse(["--frames", str(BLOBS)])
    assert settings.world.dataset == "frames"


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
