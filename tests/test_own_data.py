"""Data sets as people have them: right, or one line that names the file and the reason."""

import io
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import slow_but
from PIL import Image

import evaluate
import train
from examples import shapes
from config import WorldSettings
from diverse_sampling import devices
from diverse_sampling.errors import SettingError
from lab import assemble
from lab.metrics import answer_metrics
from lab.training import Training
from worlds.files import natural
from worlds.own_data import load_frames

SIDE = 8
MASK = np.zeros((SIDE, SIDE), bool)
MASK[2:6, 3:7] = True


def understood(path, split="train", **more):
    """The world of a data set."""
    return load_frames(WorldSettings(dataset="frames", frames=str(path), **more), split)


def right(world) -> np.ndarray:
    """The right answers to all windows of a world, (W, A, C, H, W)."""
    return world.right_answers(torch.arange(len(world))).numpy()


def grey(i: int, dtype=np.uint8, white=255) -> np.ndarray:
    """A picture that uses the whole range, another one for each i."""
    values = np.random.default_rng(i).random((SIDE, SIDE))
    values[0, 0], values[0, 1] = 0, 1
    return (values * white).astype(dtype)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def folders(tmp_path, answer, number=6, answers="answers", extension="png"):
    """A folder of `number` sequences of one frame with one answer, answer(i)."""
    for i in range(number):
        save(grey(i), tmp_path / "d" / f"s{i}" / f"0.{extension}")
        save(answer(i), tmp_path / "d" / f"s{i}" / answers / "a.png")
    return tmp_path / "d"


def palette_image(labels, colours) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8)).convert("P")
    image.putpalette(np.asarray(colours, np.uint8).flatten().tolist())
    return image


# ---------------------------------------------------------------- masks, whatever their scale

ALPHA = np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), MASK * np.uint8(255)])
MASKS = {
    "1 bit": lambda i: Image.fromarray(MASK),
    "0 and 255": lambda i: MASK * np.uint8(255),
    "0 and 1": lambda i: MASK * np.uint8(1),
    "0 and 128": lambda i: MASK * np.uint8(128),
    "1 and 2": lambda i: MASK * np.uint8(1) + np.uint8(1),
    "16 bits": lambda i: MASK * np.uint16(65535),
    "12 of 16 bits": lambda i: MASK * np.uint16(4095),
    "1 bit among 8": lambda i: Image.fromarray(MASK) if i == 2 else MASK * np.uint8(255),
    "8 bits among 16": lambda i: MASK * np.uint8(255) if i == 3 else MASK * np.uint16(65535),
    "colour": lambda i: np.dstack([MASK * np.uint8(255)] * 3),
    "red": lambda i: np.dstack([MASK * np.uint8(200), *[MASK * np.uint8(0)] * 2]),
    "alpha of RGBA": lambda i: ALPHA,
    "alpha of LA": lambda i: Image.fromarray(ALPHA, "RGBA").convert("LA"),
    "palette of grey": lambda i: palette_image(MASK, [(0, 0, 0), (255, 255, 255)]),
    "inverse palette": lambda i: palette_image(~MASK, [(255, 255, 255), (0, 0, 0)]),
    "palette of colours": lambda i: palette_image(MASK, [(0, 0, 0), (255, 0, 0)]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_as_it_was_meant(kind, tmp_path):
    world = understood(folders(tmp_path, MASKS[kind]))
    assert world.label_classes == 0 and world.answer_channels == 1
    np.testing.assert_array_equal(right(world), np.broadcast_to(MASK, (5, 1, 1, SIDE, SIDE)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64, np.uint16, np.float32])
@pytest.mark.parametrize("white", [1, 255])
def test_arrays_of_masks_of_any_type(dtype, white, tmp_path):
    masks = np.broadcast_to(MASK, (6, 2, SIDE, SIDE)).astype(dtype) * np.dtype(dtype).type(white)
    frames = np.stack([grey(i) for i in range(6)])[:, None]
    np.savez(tmp_path / "d.npz", frames=frames, answers=masks)
    world = understood(tmp_path / "d.npz")
    np.testing.assert_array_equal(right(world), np.broadcast_to(MASK, (5, 2, 1, SIDE, SIDE)))


def test_raters_of_other_scales_are_asked_about(tmp_path):
    path = folders(tmp_path, lambda i: MASK * np.uint8(1 if i == 2 else 255))
    with pytest.raises(SettingError, match="answers_are: null.* 3 values of uint8 0, 1, 255"):
        understood(path)


# ---------------------------------------------------------------- classes


def classes(i: int) -> np.ndarray:
    labels = np.random.default_rng(i).integers(0, 3, (SIDE, SIDE), dtype=np.uint8)
    labels[0, :3] = [0, 1, 2]
    return labels


COLOURS = [(0, 0, 0), (0, 200, 0), (200, 0, 0)]
CLASSES = {
    "0, 1, 2": (classes, (0, 1, 2)),
    "5, 6, 7000": (lambda i: np.array([5, 6, 7000], np.uint16)[classes(i)], (5, 6, 7000)),
    "palette": (lambda i: palette_image(classes(i), COLOURS), tuple(COLOURS)),
    "colours": (lambda i: np.array(COLOURS, np.uint8)[classes(i)], tuple(COLOURS)),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_few_values_are_classes_with_a_channel_each(kind, tmp_path):
    answer, values = CLASSES[kind]
    world = understood(folders(tmp_path, answer))
    assert world.label_classes == 3 and world.answer_levels.values == values
    for i, channels in zip((0, 1, 2, 3, 5), right(world)[:, 0]):
        np.testing.assert_array_equal(channels, classes(i) == np.arange(3)[:, None, None])
    assert "3 classes" in world.data.describe()


def test_answers_that_are_said_to_be_grey_are_and_a_range_is_not_theirs(tmp_path):
    path = folders(tmp_path, classes)
    world = understood(path, data="answers_are: grey, range: [0, 510]")
    assert world.label_classes == 0
    np.testing.assert_allclose(right(world)[0, 0, 0], classes(0) / 510, rtol=1e-6)
    assert understood(path, data="range: [0, 510]").label_classes == 3


def test_known_classes_hold_for_data_that_lacks_one_and_others_are_refused(tmp_path):
    path = folders(tmp_path, lambda i: np.minimum(classes(i), 1))
    assert understood(path, data="classes: {a: 0, b: 1, c: 2}").label_classes == 3
    with pytest.raises(SettingError, match="only 0, 2, 3, which are known.* 0, 1"):
        understood(path, data="classes: {a: 0, b: 2, c: 3}")


# ---------------------------------------------------------------- frames


def frames_npz(tmp_path, frames, **more):
    np.savez(tmp_path / "d.npz", frames=frames, **more)
    return tmp_path / "d.npz"


UNIT = np.stack([grey(i, np.float64, 1.0) for i in range(12)]).reshape(6, 2, SIDE, SIDE)
RANGES = {
    "floats": (UNIT, {}),
    "-1 to 1": (UNIT * 2 - 1, {}),
    "whole floats": (np.rint(UNIT * 255), {}),
    "8 bits": (np.rint(UNIT * 255).astype(np.uint8), {}),
    "8 bits in 64": (np.rint(UNIT * 255).astype(np.int64), {}),
    "16 bits": (np.rint(UNIT * 65535).astype(np.uint16), {}),
    "12 bits, said": (np.rint(UNIT * 4095).astype(np.uint16), dict(data="range: [0, 4095]")),
    "Hounsfield, said": (UNIT * 1400 - 1000, dict(data="range: [-1000, 400]")),
    "half": (UNIT.astype(np.float16), {}),
    "channel last": (np.rint(UNIT * 255).astype(np.uint8)[..., None], {}),
    "channel third": (np.rint(UNIT * 255).astype(np.uint8)[:, :, None], {}),
}


@pytest.mark.parametrize("kind", RANGES)
def test_the_type_says_what_is_white(kind, tmp_path):
    frames, more = RANGES[kind]
    world = understood(frames_npz(tmp_path, frames), **more)
    given = world.given(torch.arange(len(world))).numpy()[:, 0]
    np.testing.assert_allclose(given, UNIT[[0, 1, 2, 3, 5], 0], atol=0.003)


@pytest.mark.parametrize(
    "frames, said, why",
    [
        (UNIT * 300, None, r"null'; accepted: \[black, white\], because frames in"),
        (UNIT * 1400 - 1000, None, ".*float64 from -1000 to 400"),
        (np.rint(UNIT * 65535).astype(np.int64), None, ".*int64 from 0 to 65535"),
        (np.rint(UNIT * 4).astype(np.uint8), None, ".*they look like class labels"),
        (UNIT * 300, "range: [0, 255]", ".*a range that holds all values"),
        (UNIT * 300, "range: '19'", "19'; accepted: two numbers"),
        (UNIT * 300, "range: [0, .nan]", ".*nan.*accepted: two numbers"),
    ],
)
def test_numbers_without_a_range_that_holds_them_are_refused(frames, said, why, tmp_path):
    with pytest.raises(SettingError, match=f"^data: got 'range: {why}"):
        understood(frames_npz(tmp_path, frames), data=said)


def test_twelve_bits_in_sixteen_are_warned_of(tmp_path):
    world = understood(frames_npz(tmp_path, np.rint(UNIT * 4095).astype(np.uint16)))
    assert any("range: [0, 4095]" in notice for notice in world.data.notices)


def moving(number: int, length: int) -> np.ndarray:
    """Videos (number, length, H, W) of a dot that moves slowly, each from another place."""
    videos = np.zeros((number, length, 16, 16), np.uint8)
    rng = np.random.default_rng(0)
    for n, start in enumerate(rng.integers(0, 12, (number, 2))):
        for t in range(length):
            y, x = start[0], (start[1] + t // 4) % 12
            videos[n, t, y : y + 4, x : x + 4] = 255
    return videos


@pytest.mark.parametrize("number, length", [(40, 12), (12, 40)])
def test_which_axis_is_time_is_asked_about_and_believed(number, length, tmp_path):
    videos = moving(number, length)
    for array, order, name in (
        (videos, "nt", "mine.npy"),
        (videos.swapaxes(0, 1), "tn", "mnist_test_seq.npy"),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(SettingError, match=r"'order: null'; accepted: nt, or tn"):
            understood(tmp_path / name, num_cond_frames=2)
        world = understood(tmp_path / name, num_cond_frames=2, data=f"order: {order}")
        assert len(world.data.splits) == number
        given = world.given(torch.arange(3)).numpy()
        np.testing.assert_array_equal(given, [videos[0, t : t + 2] / 255 for t in range(3)])
    (tmp_path / "mnist_test_seq.yaml").write_text("order: tn\n")
    world = understood(tmp_path / "mnist_test_seq.npy", num_cond_frames=2)
    assert len(world.data.splits) == number and "order: tn" in world.data.describe()


# ---------------------------------------------------------------- names, folders


def test_frames_are_in_natural_order_whatever_their_extension(tmp_path):
    pictures = [grey(t) for t in range(12)]
    for i in range(5):
        for t, picture in enumerate(pictures):
            name = f"{t}.PNG" if t % 2 else f"{t}.png"
            save(np.roll(picture, i), tmp_path / f"s{i}" / name)
    (tmp_path / "s0" / "._3.png").write_bytes(b"resource fork")
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        save(pictures[0], tmp_path / hidden / "0.png")
        save(pictures[0], tmp_path / "s1" / hidden / "0.png")
    world = understood(tmp_path, num_cond_frames=11)
    assert len(world.data.splits) == 5
    np.testing.assert_allclose(world.given(torch.tensor([0]))[0], np.stack(pictures[:11]) / 255)


@pytest.mark.parametrize("colours", [1, 3])
def test_pictures_of_other_sizes_are_refused(colours, tmp_path):
    for i, width in enumerate((8, 8, 8, 9, 8)):
        picture = np.random.default_rng(i).integers(0, 256, (8, width, colours), dtype=np.uint8)
        save(picture.squeeze(), tmp_path / f"s{i}" / "0.png")
    with pytest.raises(
        SettingError, match="s3/0.png'; accepted: pictures of one size; found 8 x 8 and"
    ):
        understood(tmp_path)


@pytest.mark.parametrize("name", ["Answers", "masks", "LABELS"])
def test_folders_of_answers_have_several_names(name, tmp_path):
    path = folders(tmp_path, lambda i: MASK, answers=name)
    assert right(understood(path)).sum() == 5 * MASK.sum()


def test_pictures_in_a_folder_of_another_name_are_refused_by_name(tmp_path):
    path = folders(tmp_path, lambda i: MASK, answers="solutions")
    with pytest.raises(SettingError, match="s0/solutions/a.png is neither frame nor answer"):
        understood(path)


def test_answers_that_are_photographs_are_read(tmp_path):
    path = folders(tmp_path, lambda i: MASK)
    for i in range(6):
        (path / f"s{i}" / "answers" / "a.png").unlink()
        save(MASK * np.uint8(255), path / f"s{i}" / "answers" / "a.jpg", quality=95)
    # JPEG is not exact: grey levels, which metrics binarise
    assert ((right(understood(path))[:, 0, 0] > 0.5) == MASK).all()


def test_what_is_not_used_what_is_empty_and_what_is_missing_is_named(tmp_path):
    path = folders(tmp_path, lambda i: MASK * np.uint8(0 if i == 1 else 255))
    (path / "notes.txt").write_text("x")
    notices = " ".join(understood(path).data.notices)
    assert "not read: notes.txt" in notices
    assert "1 of 6 cases have only empty answers" in notices
    save(grey(0), path / "s0" / "0.tga")
    with pytest.raises(SettingError, match=r"s0/0.tga'; accepted: pictures \(PNG"):
        understood(path)
    assert "0.tga" in " ".join(understood(path, data="ignore: '*/*.tga'").data.notices)
    (path / "s0" / "0.tga").unlink()
    (path / "s3" / "answers" / "a.png").unlink()
    with pytest.raises(SettingError, match="1 of 6 have no answer, such as s3"):
        understood(path)


@pytest.mark.parametrize("several", ["folders", "subfolders"])
def test_images_and_masks_in_two_folders(several, tmp_path):
    for i in range(6):
        save(grey(i), tmp_path / "images" / f"case_{i}.jpg", quality=98)
        for a in range(2 if i else 1):  # the first case has one answer only
            place = f"masks_{a}/case_{i}.png" if several == "folders" else f"masks/case_{i}/{a}.png"
            save(np.roll(MASK, a, 1), tmp_path / place)
    world = understood(tmp_path)
    assert world.counts.tolist() == [1, 2, 2, 2, 2]
    assert world.data.cases.names[0] == "case_0"
    np.testing.assert_array_equal(right(world)[1, 1, 0], np.roll(MASK, 1, 1))
    save(MASK, tmp_path / "masks_0" / "case_9.png")
    why = "an answer to no frame" if several == "folders" else "neither frame nor answer"
    with pytest.raises(SettingError, match=f"masks_0/case_9.png is {why}"):
        understood(tmp_path)


def test_files_of_animations_and_stacks_are_sequences(tmp_path):
    videos = np.stack([[np.roll(MASK, t + n, 1) for t in range(5)] for n in range(6)])
    videos = videos * np.uint8(255)
    for n, video in enumerate(videos):
        first, *others = [Image.fromarray(frame) for frame in video]
        place = tmp_path / f"{n}.{'gif' if n % 2 else 'tif'}"
        first.save(place, save_all=True, append_images=others)
    with pytest.raises(SettingError, match="0.tif is no video"):
        understood(tmp_path, num_cond_frames=4)
    world = understood(tmp_path, num_cond_frames=4, data="frames: '{sequence}.*'")
    each = {world.names[i]: world.given(torch.tensor([i]))[0] for i in range(len(world))}
    for name, given in each.items():
        np.testing.assert_allclose(given, videos[int(name), :4] / 255)
    assert {"0", "1"} <= set(each)


def test_videos_are_decoded_or_their_decoder_is_named(tmp_path):
    videos = moving(5, 6).repeat(4, -1).repeat(4, -2)
    if not find_spec("imageio_ffmpeg"):
        for n in range(5):
            (tmp_path / f"{n}.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
        with pytest.raises(SettingError, match="pip install imageio-ffmpeg"):
            understood(tmp_path)
        return
    import imageio.v3

    for n, video in enumerate(videos):
        imageio.v3.imwrite(tmp_path / f"{n}.mp4", np.stack([video] * 3, -1), plugin="FFMPEG", fps=5)
    world = understood(tmp_path, num_cond_frames=5)
    given = world.given(torch.tensor([0]))[0].numpy()
    assert given.shape == (5, 64, 64) and np.abs(given - videos[0, :5] / 255).mean() < 0.02
    (tmp_path / "0.mp4").write_bytes(b"no video")
    with pytest.raises(SettingError, match="0.mp4'; accepted: a video that can be read"):
        understood(tmp_path)


def test_colour_has_three_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 3, SIDE, SIDE, 3), dtype=np.uint8)
    as_array = understood(frames_npz(tmp_path, colours), num_cond_frames=2)
    for i, frames in enumerate(colours):
        for t, frame in enumerate(frames):
            save(frame, tmp_path / "d" / f"{i}" / f"{t}.png")
    for world in (as_array, understood(tmp_path / "d", num_cond_frames=2)):
        assert (world.cond_channels, world.answer_channels) == (6, 3)
        given = world.given(torch.tensor([1]))[0].numpy()
        np.testing.assert_allclose(given, colours[1, :2].transpose(0, 3, 1, 2) / 255, rtol=1e-6)
        windows = world.windows(4, torch.Generator().manual_seed(0), which=torch.full((4,), 1))
        cond, answer = windows.split(world.cond_channels, world.answer_channels)
        np.testing.assert_allclose(cond[0].view(2, 3, SIDE, SIDE), given)
        np.testing.assert_allclose(answer[0], colours[1, 2].transpose(2, 0, 1) / 255, rtol=1e-6)


def test_natural_order():
    names = ["f10b", "f2", "f1", "F3", "a", "10", "9"]
    in_order = ["9", "10", "a", "f1", "f2", "F3", "f10b"]
    assert sorted(names, key=natural) == in_order


# ---------------------------------------------------------------- splits


def labelled(tmp_path, number, **more):
    frames = np.stack([grey(i) for i in range(number)])[:, None]
    answers = np.broadcast_to(MASK * np.uint8(255), (number, 1, SIDE, SIDE))
    return frames_npz(tmp_path, frames, answers=answers, **more)


def test_groups_never_straddle_a_split(tmp_path):
    groups = np.arange(90) // 3 % 25
    path = labelled(tmp_path, 90, groups=groups)
    worlds = [understood(path, split) for split in ("train", "validation", "test")]
    assert sum(map(len, worlds)) == 90 and all(map(len, worlds))
    own = [{groups[int(name)] for name in world.names} for world in worlds]
    assert not (own[0] & own[1] or own[0] & own[2] or own[1] & own[2])
    assert "25 groups" in worlds[0].data.describe()


def test_a_split_that_is_given_is_used(tmp_path):
    split = np.array(["train"] * 4 + ["test"] * 2 + ["validation"])
    path = labelled(tmp_path, 7, split=split)
    assert [len(understood(path, name)) for name in ("train", "test", "validation")] == [4, 2, 1]
    mixed = labelled(tmp_path, 7, split=split, groups=np.arange(1, 8) // 2)
    with pytest.raises(SettingError, match="group 2 is in test and train"):
        understood(mixed)


def test_folders_train_and_test_are_the_split(tmp_path):
    for split, number in (("Train", 4), ("test", 2)):
        for i in range(number):
            save(grey(i), tmp_path / split / f"s{i}" / "0.png")
            save(MASK, tmp_path / split / f"s{i}" / "masks" / "0.png")
    assert len(understood(tmp_path, "train")) == 4 and len(understood(tmp_path, "test")) == 2


def test_folders_of_patients_are_groups(tmp_path):
    for patient in range(6):
        for visit in range(2):
            save(grey(2 * patient + visit), tmp_path / f"p{patient}" / f"v{visit}" / "0.png")
            save(MASK, tmp_path / f"p{patient}" / f"v{visit}" / "masks" / "0.png")
    world = understood(tmp_path, "test")
    assert world.names == ["p4/v0", "p4/v1"]


# ---------------------------------------------------------------- the same path, other data

TINY = ["--channels", "[8]", "--blocks", "1", "--attention", "[]", "--head_channels", "8"]
SHORT = [*TINY, *"--iterations 2 --batch_size 4 --patch_size 4 --sample_every 0".split()]
SHORT += ["--device", "cpu"]


def trained(tmp_path, path, *more) -> list[str]:
    """The flags of an evaluation of the network that a short training leaves in model/."""
    out = tmp_path / "model"
    train.main(["--frames", str(path), *SHORT, "--outdir", str(out), *more])
    return ["--checkpoint", str(out / "model.safetensors"), "--device", "cpu", "--num_steps", "3"]


def test_other_data_on_the_same_path_is_noticed_everywhere(tmp_path, capsys, refused, undrawn):
    path = labelled(tmp_path, 10)
    argv = [*trained(tmp_path, path), "--num_sets", "2", "--batch_size", "2"]
    argv += ["--outdir", str(tmp_path / "run")]
    evaluate.main(argv)
    evaluate.main(argv)  # this very run again
    capsys.readouterr()
    labelled(tmp_path, 11)
    assert "says otherwise (frames_sha256: " in refused(evaluate.main, argv)
    evaluate.main([*argv[:-1], str(tmp_path / "other")])
    assert "has changed since the training" in capsys.readouterr().err
    line = refused(train.main, ["--resume", str(tmp_path / "model")])
    assert "frames_sha256: got" in line and "the run was made with another" in line


def test_frames_of_another_size_or_kind_than_the_training_are_refused(
    tmp_path, refused, capsys, undrawn
):
    argv = [*trained(tmp_path, labelled(tmp_path, 10)), "--outdir", str(tmp_path / "run")]
    capsys.readouterr()
    rng = np.random.default_rng(0)
    for shape, why in [
        ((10, 2, 16, 16), "8 x 8 px, which the checkpoint was trained with; these have 16 x 16"),
        ((10, 2, 8, 8, 3), "frames in grey, as data.yaml or the training"),
    ]:
        np.savez(tmp_path / "o.npz", frames=rng.integers(256, size=shape, dtype=np.uint8))
        assert why in refused(evaluate.main, [*argv, "--frames", str(tmp_path / "o.npz")])
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- from start to end


@pytest.mark.parametrize("kind", ["classes", "colour", "ragged"])
def test_every_kind_from_training_to_pictures_of_new_data(kind, tmp_path, capsys):
    rng = np.random.default_rng(0)
    pixels = (3, SIDE, 12) if kind == "colour" else (SIDE, SIDE)
    if kind == "classes":
        path = folders(tmp_path, classes, 10)
    elif kind == "ragged":
        path = folders(tmp_path, lambda i: MASK, 10)
        for i in (1, 4, 9):
            save(np.roll(MASK, 1), path / f"s{i}" / "answers" / "b.png")
    else:
        path = tmp_path / "d"  # not square, and of different lengths
        for i, t in [(i, t) for i in range(10) for t in range(2 + i % 3)]:
            picture = rng.integers(0, 256, (SIDE, 12, 3), dtype=np.uint8)
            save(picture, path / f"s{i}" / f"{t}.png")
    model = trained(tmp_path, path, "--motion", "1" if kind == "colour" else "0")
    assert (tmp_path / "model" / "examples.png").is_file()
    written = (tmp_path / "model" / "data.yaml").read_text()
    assert understood(path, data=written).data.description.as_yaml() == written
    capsys.readouterr()
    run = tmp_path / "run"
    guided = [*model, "--pg_factor", "1", "--batch_size", "3", "--num_sets", "2"]
    evaluate.main([*guided, "--outdir", str(run)])
    said = capsys.readouterr()
    assert str(path) in said.err and "10 sequences" in said.err
    assert "mean IoU" in said.out and "GED" in said.out and "(test split)" in said.out
    assert {"examples.png", "samples.png", "metrics.json"} <= {p.name for p in run.iterdir()}
    with np.load(run / "samples.npz") as file:
        assert file["samples"].shape == (2, 3, *pixels)
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["hm_iou"]["mean"] <= 1 and metrics["data"]["sequences"] == 10
    if kind == "classes":
        assert len(metrics["class_iou"]) == 2 and "IoU of class" in said.out
    if kind == "ragged":
        assert metrics["answers_iou_distance"]["mean"] > 0

    # New pictures without answers, as they come.
    for name in ("x1", "x2", "x10"):
        picture = rng.integers(0, 256, (*pixels[-2:], 3), dtype=np.uint8)
        save(picture if kind == "colour" else picture[..., 0], tmp_path / "new" / f"{name}.png")
    new = tmp_path / "predicted"
    argv = [*model, "--frames", str(tmp_path / "new"), "--answers", "none", "--batch_size", "2"]
    evaluate.main([*argv, "--outdir", str(new)])
    drawn = sorted(str(p.relative_to(new)) for p in (new / "predictions").rglob("*.png"))
    summed = ["consensus.png", "disagreement.png"] * (kind in ("classes", "ragged"))
    files = [*summed, "particle_0.png", "particle_1.png"]
    assert drawn == [f"predictions/{name}/{file}" for name in ("x1", "x10", "x2") for file in files]
    picture = np.asarray(Image.open(new / "predictions" / "x2" / "particle_0.png"))
    expected = {"classes": {0, 1, 2}, "ragged": {0, 255}}.get(kind, set(range(256)))
    assert set(np.unique(picture)) <= expected
    assert picture.shape == ((*pixels[1:], 3) if kind == "colour" else pixels)
    if summed:
        agreed, apart, a, b = (
            np.asarray(Image.open(new / "predictions" / "x2" / name)).astype(int) for name in files
        )
        assert (agreed == np.minimum(a, b)).all()  # of two that differ, the first class
        share = 255 * np.log(2) / np.log(len(expected))
        assert (apart == np.where(a == b, 0, round(share))).all()

    # One of each is drawn again.
    again = tmp_path / "again"
    evaluate.main(["--from_run", str(new), "--redraw", "1", "--outdir", str(again)])
    for file, same in {"particle_0.png": True, "particle_1.png": False}.items():
        read = [(each / "predictions" / "x2" / file).read_bytes() for each in (new, again)]
        assert (read[0] == read[1]) == same


def test_class_metrics_are_means_over_the_classes_that_are_there():
    truth = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    truth[..., :2, :] = 1
    truth[..., 2, :] = 2
    one = torch.ones(1, dtype=torch.float64)
    perfect = answer_metrics(truth, truth, one, 4)
    assert perfect["mean_iou"]["mean"] == 1 and perfect["class_iou"][2] is None
    sample = truth.clone()
    sample[..., 1, :] = 2  # 4 of the 8 pixels of class 1 become class 2
    found = answer_metrics(sample, truth, one, 4)
    assert found["class_iou"][0]["mean"] == pytest.approx(4 / 8)
    assert found["class_iou"][1]["mean"] == pytest.approx(4 / 8)
    assert found["mean_iou"]["mean"] == found["hm_iou"]["mean"] == pytest.approx(0.5)


def test_spread_and_its_diagnosis_tell_too_much_from_too_little():
    generator = torch.Generator().manual_seed(0)
    answers = (torch.rand(20, 4, 8, 8, generator=generator) > 0.5).float()
    alike = torch.full((4,), 0.25, dtype=torch.float64)
    independent = dict(settings=dict(pg_factor=0.0))
    same = answer_metrics(answers, answers, alike)
    assert same["excess_spread"]["mean"] == pytest.approx(0, abs=1e-6)
    collapsed = answer_metrics(answers[:, :1].expand(-1, 4, -1, -1), answers, alike)
    assert "guidance is for this case" in evaluate.diagnosis(collapsed | independent)
    agreeing = answers[:, :1].expand(-1, 4, -1, -1).clone()
    agreeing[:, 1, 0] = 1 - agreeing[:, 1, 0]
    apart = answer_metrics(answers, agreeing, alike)
    assert "guidance would add to it" in evaluate.diagnosis(apart | independent)
    guided = dict(settings=dict(pg_factor=3.0))
    assert "independent ones may be better" in evaluate.diagnosis(apart | guided)


def test_with_one_answer_a_case_spread_is_compared_with_the_error():
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.rand(60, 5, 8, 8, generator=generator) > 0.5).float()
    samples, answer = drawn[:, :4], drawn[:, 4:]
    one = torch.ones(1, dtype=torch.float64)
    frames = dict(dataset="frames", settings=dict(pg_factor=0.0))
    same = answer_metrics(samples, answer, one, masks=True) | frames
    assert "as much as they err" in evaluate.diagnosis(same)
    assert same["d_max"]["mean"] > 0 and "ci_score" not in same and "excess_spread" not in same
    assert same["fair_energy_score"]["mean"] < same["energy_score"]["mean"]
    alike = answer_metrics(samples[:, :1].expand(-1, 4, -1, -1), answer, one) | frames
    assert alike["spread_skill"]["mean"] == 0 and "d_max" not in alike
    assert "less than they err" in evaluate.diagnosis(alike)
    middle = (samples - 0.5) * torch.tensor([1, 1, -1, -1]).view(4, 1, 1) + 0.5
    known = answer_metrics(middle, 0.5 + 0.1 * (answer - 0.5), one) | frames
    assert "more than they err" in evaluate.diagnosis(known)


# ---------------------------------------------------------------- pictures without a condition

KINDS = dict(dog=12, cat=5, bird=30)  # pictures of each class


def brightness(kind: str, i: int) -> np.ndarray:
    """A picture whose brightness in one corner names its class, in the others its number."""
    picture = np.full((SIDE, SIDE), 10 * i, np.uint8)
    picture[0, 0] = 255 - sorted(KINDS).index(kind)
    return picture


def kinds(folder):
    """A folder of pictures for each of KINDS."""
    for kind, number in KINDS.items():
        for i in range(number):
            save(brightness(kind, i % 20), folder / kind / f"{i}.png")
    return folder


def kinds_npz(path, **more):
    """The same pictures as arrays, classes in turn, with other arrays in place of some or beside
    them."""
    order = [(kind, i % 20) for kind, number in KINDS.items() for i in range(number)]
    labels = np.array([sorted(KINDS).index(kind) for kind, _ in order])
    arrays = dict(frames=np.stack([brightness(*each) for each in order]), labels=labels) | more
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_folder_of_pictures_is_a_class(tmp_path):
    worlds = [
        understood(kinds(tmp_path), split, num_cond_frames=0)
        for split in ("train", "validation", "test")
    ]
    assert worlds[0].class_names == ["bird", "cat", "dog"] and worlds[0].modes_total == 3
    # Every fifth picture of each class is for testing, every tenth of the others for validation.
    numbers = [torch.bincount(world.labels, minlength=3).tolist() for world in worlds]
    assert numbers == [[22, 4, 9], [2, 0, 1], [6, 1, 2]]
    assert worlds[2].names[-3:] == ["cat/4", "dog/4", "dog/9"]
    torch.testing.assert_close(
        worlds[2].mode_probabilities, torch.tensor([6, 1, 2], dtype=torch.float64) / 9
    )
    said = worlds[0].data.describe()
    assert "no condition; 3 classes: bird 30, cat 5, dog 12" in said and "of each class" in said
    for world in worlds:
        assert (world.num_cond_frames, world.cond_channels, world.answer_channels) == (0, 0, 1)
        images, labels = world.bank
        assert images.shape == (len(world), SIDE, SIDE)
        torch.testing.assert_close(labels, (255 - 255 * images[:, 0, 0]).round().long())
        windows = world.windows(50, torch.Generator().manual_seed(0))
        cond, picture = windows.split(world.cond_channels, world.answer_channels)
        assert cond.shape == (50, 0, SIDE, SIDE) and windows.labels.shape == (50, 1)
        torch.testing.assert_close(picture[:, 0], images[windows.which[:, 0]])
        torch.testing.assert_close(windows.labels, labels[windows.which])


SHAPES_OF_ARRAYS = {
    "N, H, W": lambda frames: frames,
    "N, 1, H, W": lambda frames: frames[:, None],
    "N, H, W, 1": lambda frames: frames[..., None],
    "N, H, W, 3": lambda frames: np.stack([frames, 0 * frames, frames], -1),
    "N, 3, H, W": lambda frames: np.stack([frames, 0 * frames, frames], 1),
    "N, 1, H, W, 3": lambda frames: np.stack([frames, 0 * frames, frames], -1)[:, None],
    "N, 1, 3, H, W": lambda frames: np.stack([frames, 0 * frames, frames], 1)[:, None],
}


@pytest.mark.parametrize("shape", SHAPES_OF_ARRAYS)
def test_arrays_of_pictures_with_labels_are_the_same(shape, tmp_path):
    with np.load(kinds_npz(tmp_path / "plain.npz")) as file:
        frames = file["frames"]
    path = kinds_npz(tmp_path / "d.npz", frames=SHAPES_OF_ARRAYS[shape](frames))
    world = understood(path, num_cond_frames=0)
    assert world.class_names == ["0", "1", "2"] and len(world) == 35
    images, labels = world.bank
    channels = 3 if "3" in shape else 1
    assert world.answer_channels == channels
    assert images.shape == ((35, 3, SIDE, SIDE) if channels == 3 else (35, SIDE, SIDE))
    corner = images[:, 0, 0, 0] if channels == 3 else images[:, 0, 0]
    torch.testing.assert_close(labels, (255 - 255 * corner).round().long())
    assert channels == 1 or not images[:, 1].any()


def test_classes_are_in_the_order_of_their_numbers_or_names(tmp_path):
    labels = np.repeat([10, 9, 2], [5, 12, 30])
    world = understood(kinds_npz(tmp_path / "d.npz", labels=labels), num_cond_frames=0)
    assert world.class_names == ["2", "9", "10"]
    names = np.repeat(["pear", "fig", "apple"], [5, 12, 30])
    path = kinds_npz(tmp_path / "d.npz", labels=None, classes=names)
    assert understood(path, num_cond_frames=0).class_names == ["apple", "fig", "pear"]


def test_pictures_without_classes_have_no_modes(tmp_path):
    for i in range(10):
        save(brightness("cat", i), tmp_path / "d" / f"{i}.png")
    for path in (tmp_path / "d", kinds_npz(tmp_path / "d.npz", labels=None)):
        world = understood(path, num_cond_frames=0)
        assert world.class_names == [] and world.modes_total is world.mode_probabilities is None
        assert "no condition; no classes" in world.data.describe()
        assert not world.bank[1].any()


def test_splits_of_pictures_that_are_given_are_used(tmp_path):
    for split, number in (("train", 3), ("test", 1)):
        for kind in KINDS:
            for i in range(number):
                save(brightness(kind, i), tmp_path / split / kind / f"{i}.png")
    assert len(understood(tmp_path, num_cond_frames=0)) == 9
    assert len(understood(tmp_path, "test", num_cond_frames=0)) == 3
    save(brightness("cat", 0), tmp_path / "train" / "fox" / "0.png")
    with pytest.raises(SettingError, match="class fox has 1, none for test"):
        understood(tmp_path, num_cond_frames=0)


def test_nothing_changes_with_a_condition(tmp_path):
    world = understood(kinds(tmp_path), num_cond_frames=1, answers="none", split="test")
    assert len(world) == 3 and world.names == ["bird", "cat", "dog"]
    path = kinds_npz(tmp_path / "d.npz")
    with pytest.raises(SettingError, match="one video or N pictures"):
        understood(path)


def few(folder):
    for i in range(4):
        save(brightness("cat", i), folder / "cat" / f"{i}.png")


def loose(folder):
    save(brightness("cat", 0), folder / "0.png")


def deeper(folder):
    save(MASK, folder / "cat" / "masks" / "0.png")


def larger(folder):
    save(np.zeros((SIDE, SIDE + 1), np.uint8), folder / "fox" / "0.png")


def masks(folder):
    for i in range(5):
        save(brightness("cat", i), folder / "d" / "images" / f"{i}.png")
        save(MASK, folder / "d" / "masks" / f"{i}.png")
    return folder / "d"


def one_class(folder):
    for i in range(5):
        save(brightness("cat", i), folder / "d" / "cat" / f"{i}.png")
    return folder / "d"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (few, "class cat has 4, none for test"),
        (loose, "bird/0.png is neither frame nor answer"),
        (deeper, "cat/masks/0.png is neither frame nor answer"),
        (larger, "pictures of one size; found 8 x 8 and 8 x 9 px"),
        (masks, "images is no name of a class"),
        (one_class, "two classes or more, or pictures alone; cat is the only one"),
    ],
)
def test_folders_that_are_no_classes_are_refused(spoil, why, tmp_path):
    if spoil is not few:
        kinds(tmp_path)
    else:
        for i in range(9):
            save(brightness("dog", i), tmp_path / "dog" / f"{i}.png")
    path = spoil(tmp_path) or tmp_path
    with pytest.raises(SettingError, match=why):
        understood(path, num_cond_frames=0)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (dict(frames=np.zeros((47, 2, SIDE, SIDE))), r"array has shape \(47, 2, 8, 8\)"),
        (dict(labels=np.zeros((47, 3), int)), r"`labels` of shape \(47,\)"),
        (dict(labels=np.full(47, 0.5)), "`labels` of shape .47,., whole numbers or texts"),
        (dict(labels=np.zeros(47, int)), "two classes or more, or pictures alone; 0"),
        (dict(classes=np.zeros(47, int)), "found both"),
        (dict(answers=np.zeros((47, SIDE, SIDE))), "`answers` .47, 8, 8. is not"),
        (dict(groups=np.arange(47)), "`groups` .47,. is not"),
    ],
)
def test_arrays_that_are_no_pictures_in_classes_are_refused(arrays, why, tmp_path):
    with pytest.raises(SettingError, match=why):
        understood(kinds_npz(tmp_path / "d.npz", **arrays), num_cond_frames=0)


def test_settings_of_what_follows_are_refused_without_a_condition(refused, tmp_path):
    argv = ["--frames", str(kinds(tmp_path)), "--num_cond_frames", "0"]
    for flags, line in [
        ("--answers none", "answers: got 'none'; accepted: given for pictures"),
        ("--target posterior", "target: got 'posterior'"),
        ("--motion 2", "motion: got 2; accepted: 0 without"),
    ]:
        assert line in refused(train.main, [*argv, *flags.split()])


def test_the_exact_denoiser_of_pictures_needs_their_classes(refused, tmp_path):
    """The right answers are those for training; a joint set has some of every class."""
    path = kinds_npz(tmp_path / "d.npz")
    argv = f"--frames {path} --num_cond_frames 0 --denoiser exact --device cpu --num_steps 4"
    sets = "--num_sets 2 --batch_size 40 --guidance joint"
    evaluation = assemble.evaluation([*argv.split(), *sets.split()])
    known, labels = evaluation.task.known, evaluation.task.known_labels
    distance, nearest = torch.cdist(evaluation.sample(False).flatten(2), known.flatten(1)).min(-1)
    assert distance.max() < 1e-2
    assert all(set(each.tolist()) == {0, 1, 2} for each in labels[nearest])
    kinds_npz(path, labels=None)
    line = refused(evaluate.main, argv.split())
    assert "denoiser: got 'exact'; accepted: trained for pictures without classes" in line


@pytest.mark.parametrize("colour", [False, True])
def test_a_network_of_pictures_is_trained_continued_and_sampled(colour, tmp_path, capsys, refused):
    path = kinds_npz(tmp_path / "d.npz")
    if colour:
        with np.load(path) as file:
            frames = SHAPES_OF_ARRAYS["N, H, W, 3"](file["frames"])
        kinds_npz(path, frames=frames)
    argv = trained(tmp_path, path, "--num_cond_frames", "0")
    said = capsys.readouterr()
    assert "no condition; 3 classes: 0 30, 1 5, 2 12" in said.err
    assert "held-out loss" in said.out and "sample with: python evaluate.py" in said.out
    folder = tmp_path / "model"
    assert {"examples.png", "samples-0000002.png"} <= {file.name for file in folder.iterdir()}
    train.main(["--resume", str(folder), "--iterations", "3", "--device", "cpu"])
    run = tmp_path / "run"
    evaluate.main([*argv, "--num_sets", "2", "--batch_size", "3", "--outdir", str(run)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "unconditional" and metrics["data"]["class_names"] == ["0", "1", "2"]
    with np.load(run / "samples.npz") as file:
        assert file["samples"].shape == (2, 3, *((3,) if colour else ()), SIDE, SIDE)
    capsys.readouterr()
    assert "rollout: got 2" in refused(evaluate.main, [*argv, "--rollout", "2"])
    more = ["--frames", str(path), "--num_cond_frames", "1"]
    assert "num_cond_frames: got 1" in refused(evaluate.main, [*argv, *more])


def test_the_example_of_classes_is_the_same_for_the_same_seed(tmp_path, refused, capsys):
    pixels = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        shapes.main(["--out", str(tmp_path / name), "--num_pictures", "100", "--seed", seed])
        worlds = [
            understood(tmp_path / name, split, num_cond_frames=0) for split in ("train", "test")
        ]
        pixels.append(worlds[0].bank[0])
    assert torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[0], pixels[2])
    assert worlds[0].class_names == ["circle", "cross", "square", "triangle"]
    assert worlds[0].data.splits.count("test") == 10 + 6 + 3 + 1
    # Pictures of one class are more alike than pictures of two: nearest neighbours tell them apart.
    (known, labels), (new, truth) = (world.bank for world in worlds)
    outline = lambda images: (images / images.amax((1, 2), keepdim=True)).flatten(1)
    nearest = torch.cdist(outline(new), outline(known)).argmin(1)
    assert (labels[nearest] == truth).double().mean() > 0.8
    capsys.readouterr()
    argv = ["--out", str(tmp_path / "a")]
    assert "a directory that is empty or not there yet" in refused(shapes.main, argv)


# ---------------------------------------------------------------- damaged and hostile files


def corpus() -> dict[str, bytes]:
    """The bytes of a small whole file of every accepted type."""
    colour = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    frames = np.stack([grey(i) for i in range(12)]).reshape(6, 2, SIDE, SIDE)
    files = {kind: io.BytesIO() for kind in "png jpg tif bmp webp gif npy npz".split()}
    for kind, name in zip(files, ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")):
        Image.fromarray(colour).save(files[kind], name)
    np.save(files["npy"], frames)
    np.savez_compressed(files["npz"], frames=frames)
    return {kind: file.getvalue() for kind, file in files.items()}


def damaged(data: bytes, rng) -> bytes:
    """The same with a part cut off, overwritten, doubled or flipped."""
    out = bytearray(data)
    how = rng.integers(4)
    place = int(rng.integers(len(out)))
    if how == 0:
        return bytes(out[:place])
    if how == 1:
        length = int(rng.integers(1, 40))
        out[place : place + length] = rng.bytes(length)
        return bytes(out)
    if how == 2:
        return bytes(out[:place] + out[place // 2 :])
    for _ in range(8):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


@pytest.mark.parametrize("number", slow_but([100], [100, 500]))
def test_damaged_files_are_one_line_or_right(number, tmp_path):
    rng = np.random.default_rng(number)
    whole = corpus()
    refusals = 0
    for i in range(number):
        kind = list(whole)[i % len(whole)]
        data = damaged(whole[kind], rng)
        place = tmp_path / str(i)
        if kind in ("npy", "npz"):
            path = place.with_suffix(f".{kind}")
            path.write_bytes(data)
        else:
            path = place
            for j in range(5):
                inside = place / f"{j}.gif" if kind == "gif" else place / f"s{j}" / f"0.{kind}"
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.write_bytes(data if j == 2 else whole[kind])
                if kind != "gif":
                    save(MASK, place / f"s{j}" / "masks" / "0.png")
        try:
            world = understood(path)
            assert torch.isfinite(world.given(torch.arange(len(world)))).all()
        except SettingError as error:
            refusals += 1
            assert str(place) in str(error) and "\n" not in str(error)
    assert refusals > number / 4


@pytest.mark.parametrize(
    "said",
    [
        *(
            "range: [1]",
            "range: [2, 1]",
            "range: [0, .inf]",
            "range: 3",
            "order: nn",
            "order: [nt]",
        ),
        *("channels: 3", "answers_are: masks", "frames: /etc/*", "answers: ../x", "frames: [a]"),
        *("classes: {a: 0}", "classes: {a: 0, b: 0}", "classes: {a: 0, b: [1, 2, 3]}"),
        *("classes: {a: [1, 2], b: [3, 4]}", "classes: [0, 1]", "ignore: [3]", "rangee: [0, 1]"),
        *("7", "[range]", "range: [0, 1", "frames: '{case'", "frames: '(a'"),
    ],
)
def test_what_is_said_of_data_is_checked(said, tmp_path):
    """In a flag, and in a data.yaml, which the error names."""
    path = folders(tmp_path, lambda i: MASK)
    with pytest.raises(SettingError, match="^data: "):
        understood(path, data=said)
    (path / "data.yaml").write_text(said)
    with pytest.raises(SettingError, match="^data: "):
        understood(path)


def test_a_training_needs_answers(refused, tmp_path):
    argv = ["--frames", str(labelled(tmp_path, 10))]
    argv += ["--answers", "none"]
    assert "answers: got 'none'" in refused(train.main, argv)
    assert "answers: got 'none'" in refused(evaluate.main, ["--denoiser", "exact", *argv])


def test_a_batch_that_does_not_fit_into_memory_is_refused_with_one_that_does(
    refused, tmp_path, monkeypatch
):
    frames = np.random.default_rng(0).integers(256, size=(6, 2, 64, 64), dtype=np.uint8)
    argv = ["--frames", str(frames_npz(tmp_path, frames)), *TINY, "--patch_size", "4"]
    argv += ["--batch_size", "256", "--device", "cpu", "--outdir", str(tmp_path / "run")]
    monkeypatch.setattr(devices, "free_memory", lambda device: 8 * 2**20)
    line = refused(train.main, argv)
    assert "batch_size: got 256; accepted: at most " in line and "64 x 64 px" in line
    parts = int(line.split("accumulate = ")[1].split(";")[0])
    assert parts > 1
    training, _ = train.setup([*argv, "--accumulate", str(2 ** (parts - 1).bit_length())])
    assert training.settings.train.batch_size == 256


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 137 GB")])
def test_memory_that_runs_out_on_the_way_is_one_line(error, tmp_path, monkeypatch, capsys, undrawn):
    def fail(self):
        raise error

    monkeypatch.setattr(Training, "backward", fail)
    with pytest.raises(SystemExit) as stop:
        trained(tmp_path, labelled(tmp_path, 10))
    assert stop.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "out of memory" in last and "--accumulate" in last and "--batch_size" in last


def test_particles_of_a_rollout_go_on_from_their_own_frames(tmp_path, refused, capsys, undrawn):
    """The second frame is what the same network samples when it is given the first ones."""
    videos = np.random.default_rng(0).integers(0, 256, (10, 4, SIDE, SIDE), dtype=np.uint8)
    # Long enough to depend on what is given.
    longer = ["--iterations", "15", "--lr", "0.03", "--warmup", "0"]
    argv = trained(tmp_path, frames_npz(tmp_path, videos), "--num_cond_frames", "2", *longer)
    argv += ["--batch_size", "2", "--num_sets", "2", "--rollout", "3", "--outdir"]
    evaluate.main([*argv, str(tmp_path / "run")])
    with np.load(tmp_path / "run" / "samples.npz") as file:
        arrays = dict(file)
    assert arrays["rollout"].shape == (2, 2, 3, SIDE, SIDE)
    np.testing.assert_array_equal(arrays["rollout"][:, :, 0], arrays["samples"])
    sampler = assemble.evaluation(argv[:-1]).sampler
    own = torch.from_numpy(arrays["samples"])
    given = torch.from_numpy(arrays["cond"])[:, None].expand(-1, 2, -1, -1, -1)
    cond = torch.stack([given[:, :, 1], own], 2) * 2 - 1
    sets = torch.arange(2)
    again = sampler.sample_once(sets, 2, turn=1, cond=cond)
    np.testing.assert_allclose(again, arrays["rollout"][:, :, 1], atol=1e-5)
    other = sampler.sample_once(sets, 2, turn=1, cond=cond.flip(1))
    assert not np.allclose(other, arrays["rollout"][:, :, 1], atol=1e-3)
    evaluate.main([*argv, str(tmp_path / "new"), "--answers", "none"])
    drawn = sorted(p.name for p in (tmp_path / "new/predictions/0/particle_1").iterdir())
    assert drawn == ["frame_1.png", "frame_2.png", "frame_3.png"]
    capsys.readouterr()
    # A pool is thinned at a noise level that later frames do not start from.
    pool = [*argv, str(tmp_path / "pool"), "--pool", "2"]
    assert "rollout: got 3" in refused(evaluate.main, pool)
    exact = ["--dataset", "horizontal", "--rollout", "2"]
    assert "rollout: got 2" in refused(evaluate.main, exact)


def test_a_network_whose_samples_differ_more_than_the_answers_is_not_guided(
    tmp_path, capsys, undrawn
):
    """Two updates make noise of answers that almost agree; held-out sequences show it."""
    frames = np.stack([grey(i) for i in range(100)])[:, None]
    answers = np.stack([np.stack([MASK, np.roll(MASK, i % 2, 1)]) for i in range(100)])
    argv = trained(tmp_path, frames_npz(tmp_path, frames, answers=answers * np.uint8(255)))
    argv += ["--num_steps", "4", "--batch_size", "3", "--num_sets", "3"]
    plain = assemble.evaluation(argv).run(progress=False)[0]
    kept = assemble.evaluation([*argv, "--pg_factor", "3"])
    assert any("so these sets are independent" in notice for notice in kept.notices)
    assert torch.equal(kept.run(progress=False)[0], plain)
    forced = assemble.evaluation([*argv, "--pg_factor", "3", "--pg_only_if_needed", "false"])
    assert any("guidance adds to that" in notice for notice in forced.notices)
    assert not torch.equal(forced.run(progress=False)[0], plain)


@pytest.mark.parametrize("layout", ["npz", "compressed", "folder"])
def test_loading_needs_little_more_memory_than_the_numbers(layout, tmp_path):
    import tracemalloc

    frames = np.random.default_rng(0).integers(0, 256, (120, 2, 128, 128), dtype=np.uint8)
    answers = np.zeros((120, 4, 128, 128), np.uint8)
    answers[:, :, 30:90, 40:80] = 255
    size = frames.nbytes + answers.nbytes
    path = tmp_path / "d"
    if layout == "folder":
        for i in range(120):
            for t in range(2):
                save(frames[i, t], path / f"s{i}" / f"{t}.png", compress_level=0)
            for a in range(4):
                save(answers[i, a], path / f"s{i}" / "masks" / f"{a}.png")
    else:
        path = tmp_path / "d.npz"
        write = np.savez if layout == "npz" else np.savez_compressed
        write(path, frames=frames, answers=answers)
    del frames, answers
    tracemalloc.start()
    try:
        world = understood(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world) == 87 and size < peak + size / 10
    assert peak < 1.5 * size
