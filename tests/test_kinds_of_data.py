"""Kinds of data that people bring: read as they were meant, or refused in one line."""

import itertools
import os
import struct
import zipfile
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from PIL import Image
from test_own_data import (
    MASK,
    SHORT,
    SIDE,
    frames_npz,
    grey,
    palette_image,
    right,
    save,
    understood,
)

import evaluate
import train
from diverse_sampling.errors import SettingError
from lab.records import as_written
from worlds.files import TEXTS

EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SEEDS = st.integers(0, 10**6)


def answered(folder, answer, number=6, frame=grey, suffix="png"):
    """images/ and masks/ of some cases."""
    for i in range(number):
        save(frame(i), folder / "images" / f"c{i}.png")
        save(answer(i), folder / "masks" / f"c{i}.{suffix}")
    return folder


def refused_in_one_line(path, why="", **more):
    with pytest.raises(SettingError, match=why) as error:
        understood(path, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def labels_of(rng, number: int) -> np.ndarray:
    """(SIDE, SIDE) labels, each of `number` at least once."""
    labels = rng.integers(0, number, SIDE * SIDE)
    labels[:number] = np.arange(number)
    return rng.permutation(labels).reshape(SIDE, SIDE)


# ---------------------------------------------------------------- answers


@EXAMPLES
@given(seed=SEEDS, number=st.integers(3, 32), kind=st.sampled_from(["ids", "colours", "palette"]))
def test_classes_keep_their_values_from_files_to_predictions(tmp_path_factory, seed, number, kind):
    """Ids of any size and sign, colours and palettes: what is drawn is written as it was given."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("d")
    each = [labels_of(rng, number) for _ in range(6)]
    if kind == "ids":
        start = rng.integers(-(10**6), 10**6)
        table = np.sort(rng.choice(np.arange(start, start + 10**5), number, replace=False))
        if {0, 255, 65535} & {*table}:
            table += 10**6
        frames = np.stack([grey(i) for i in range(6)])
        path = frames_npz(folder, frames, answers=table[np.stack(each)])
    else:
        table = rng.permutation(256 * 256 * 256)[:number]
        table = np.stack([table >> 16, table >> 8 & 255, table & 255], -1).astype(np.uint8)
        table[0] = 0
        if kind == "colours":
            path = answered(folder, lambda i: table[each[i]])
        else:
            path = answered(folder, lambda i: palette_image(each[i], table))
    world = understood(path)
    assert world.label_classes == number
    world_labels = right(world)[:, 0].argmax(1)  # (5, H, W)
    written = as_written(torch.from_numpy(world_labels), world.answer_levels.values)
    for pixels, labels in zip(written, (each[i] for i in (0, 1, 2, 3, 5))):
        pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
        np.testing.assert_array_equal(pixels, table[labels])
        file = folder / "written.tif"
        Image.fromarray(pixels).save(file)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), table[labels])


def test_predictions_of_colours_are_these_colours(tmp_path):
    """From training to pictures of new frames."""
    table = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    path = answered(tmp_path / "d", lambda i: table[labels_of(np.random.default_rng(i), 3)], 10)
    out = tmp_path / "model"
    train.main(["--frames", str(path), *SHORT, "--outdir", str(out)])
    assert "answers_are: classes" in (out / "config.yaml").read_text()
    for i in range(2):
        save(grey(i), tmp_path / "new" / f"{i}.png")
    argv = ["--checkpoint", str(out / "model.safetensors"), "--answers", "none", "--num_steps", "3"]
    argv += ["--frames", str(tmp_path / "new"), "--batch_size", "2", "--device", "cpu"]
    evaluate.main([*argv, "--outdir", str(tmp_path / "run")])
    drawn = sorted((tmp_path / "run" / "predictions").rglob("particle_*.png"))
    assert len(drawn) == 4
    colours = np.unique(
        np.stack([np.asarray(Image.open(file)) for file in drawn]).reshape(-1, 3), axis=0
    )
    assert {*map(tuple, colours)} <= {*map(tuple, table)} and len(colours) > 1


def test_ids_of_8_and_16_bits_are_the_same_ids(tmp_path):
    each = [labels_of(np.random.default_rng(i), 3) for i in range(6)]
    types = (np.uint8, np.uint16)
    world = understood(answered(tmp_path, lambda i: each[i].astype(types[i % 2])))
    assert world.answer_levels.values == (0, 1, 2)


def test_a_palette_is_its_colours_whichever_a_file_uses(tmp_path):
    """Entry 7 is grey, and red in a palette is the red of a picture without one."""
    table = np.zeros((8, 3), np.uint8)
    table[1], table[2], table[7] = (255, 0, 0), (0, 255, 0), (128, 128, 128)
    use = [np.array(entries) for entries in ([0, 7], [0, 1], [0, 1, 2, 7])]

    def answer(i):
        labels = use[i % 3][labels_of(np.random.default_rng(i), len(use[i % 3]))]
        return table[labels] if i == 5 else palette_image(labels, table)

    world = understood(answered(tmp_path, answer))
    assert set(world.answer_levels.values) == {*map(tuple, table[[0, 1, 2, 7]].tolist())}


AMBIGUOUS = {
    "soft borders": lambda rng: rng.choice([0, 64, 128, 255], (SIDE, SIDE)).astype(np.uint8),
    "classes of 0, 127, 255": lambda rng: np.array([0, 127, 255], np.uint8)[labels_of(rng, 3)],
    "60 ids or greys": lambda rng: labels_of(rng, 60).astype(np.uint8),
    "16-bit greys": lambda rng: rng.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16),
    "60 ids of 16 bits": lambda rng: (100 * labels_of(rng, 60)).astype(np.uint16),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_answers_that_may_be_several_things_are_asked_about(kind, tmp_path):
    """And believed: thresholded only if they are said to be a mask."""
    path = answered(tmp_path, lambda i: AMBIGUOUS[kind](np.random.default_rng(i)))
    assert "answers_are: null" in refused_in_one_line(path)
    pixels = np.stack(
        [np.asarray(Image.open(path / "masks" / f"c{i}.png")) for i in (0, 1, 2, 3, 5)]
    )
    white = 65535 if pixels.dtype == np.uint16 else 255
    soft = understood(path, data="answers_are: grey")
    np.testing.assert_allclose(right(soft)[:, 0, 0], pixels / white, rtol=1e-6)
    if pixels.max() > white / 2:
        hard = understood(path, data="answers_are: mask")
        np.testing.assert_array_equal(right(hard)[:, 0, 0], pixels > white / 2)
    if kind != "16-bit greys":
        classes = understood(path, data="answers_are: classes")
        assert classes.label_classes == len(np.unique(pixels))


@EXAMPLES
@given(seed=SEEDS, low=st.integers(-2000, 0), span=st.integers(1, 4000))
def test_a_range_is_for_frames_never_for_masks(tmp_path_factory, seed, low, span):
    rng = np.random.default_rng(seed)
    frames = rng.integers(low, low + span, (6, SIDE, SIDE), endpoint=True).astype(np.int16)
    masks = np.stack([labels_of(rng, 2) for _ in range(6)]).astype(np.uint8)
    path = frames_npz(tmp_path_factory.mktemp("d"), frames, answers=masks)
    world = understood(path, data=f"range: [{low}, {low + span}]")
    np.testing.assert_array_equal(right(world)[:, 0, 0], masks[[0, 1, 2, 3, 5]])
    shown = world.given(torch.arange(5))[:, 0].numpy()
    np.testing.assert_allclose(shown, (frames[[0, 1, 2, 3, 5]] - low) / span, atol=1e-6)


@pytest.mark.parametrize("side", [SIDE, SIDE + 1])
def test_three_experts_in_the_last_axis_are_not_taken_for_colours(side, tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (6, SIDE, side, 3))
    frames = np.random.default_rng(1).integers(0, 256, (6, SIDE, side), dtype=np.uint8)
    path = frames_npz(tmp_path, frames, answers=masks)
    assert "several answers are (N, A, H, W)" in refused_in_one_line(path)
    frames_npz(tmp_path, frames, answers=np.moveaxis(masks, -1, 1))
    assert right(understood(path)).shape == (5, 3, 1, SIDE, side)


# ---------------------------------------------------------------- frames


def test_new_pictures_are_read_by_the_numbers_of_the_training(tmp_path, capsys):
    """A network of frames from -1 to 1 gets new frames from 0 to 1 as the upper half."""
    rng = np.random.default_rng(0)
    path = frames_npz(tmp_path, rng.random((10, 2, SIDE, SIDE)) * 2 - 1)
    out = tmp_path / "model"
    train.main(["--frames", str(path), *SHORT, "--outdir", str(out)])
    np.savez(tmp_path / "new.npz", frames=rng.random((3, SIDE, SIDE)))
    argv = ["--checkpoint", str(out / "model.safetensors"), "--answers", "none", "--num_steps", "3"]
    argv += ["--frames", str(tmp_path / "new.npz"), "--batch_size", "2", "--device", "cpu"]
    evaluate.main([*argv, "--outdir", str(tmp_path / "run")])
    assert "range: [-1, 1]" in capsys.readouterr().err
    with np.load(tmp_path / "run" / "samples.npz") as file, np.load(tmp_path / "new.npz") as new:
        np.testing.assert_allclose(file["cond"][:, 0], (new["frames"] + 1) / 2, atol=1e-5)


@EXAMPLES
@given(seed=SEEDS, low=st.floats(-5000, 5000), span=st.floats(1e-2, 1e4))
@example(seed=0, low=1e-5, span=1.0)  # YAML 1.1 takes this number for text
def test_numbers_are_scaled_as_those_of_a_training_were(tmp_path_factory, seed, low, span):
    """What was understood of one data set reads another one alike, or refuses it."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("d")
    frames = low + span * rng.random((6, 2, SIDE, SIDE))
    trained = understood(frames_npz(folder, frames), data=f"range: [{low}, {low + span}]")
    said = trained.data.description.of_numbers().as_yaml()
    new = low + span * rng.random((6, 2, SIDE, SIDE)) * 0.3
    given = understood(frames_npz(folder, new), data=said).given(torch.tensor([0])).numpy()
    np.testing.assert_allclose(given[0, 0], (new[0, 0] - low) / span, atol=1e-2)
    refused_in_one_line(frames_npz(folder, new + 2 * span), "a range that holds all", data=said)


@EXAMPLES
@given(
    seed=SEEDS,
    kind=st.sampled_from("u1 u2 u4 u8 i2 i4 i8 f2 f4 f8 g".split()),
    order=st.sampled_from("<>"),
)
def test_numbers_of_other_machines_and_widths_are_the_same_numbers(
    tmp_path_factory, seed, kind, order
):
    unit = np.random.default_rng(seed).random((6, 2, SIDE, SIDE))
    unit[:, 0, 0, 0], unit[:, 0, 0, 1] = 0, 1
    dtype = np.dtype(kind) if kind == "g" else np.dtype(order + kind)
    white = 1
    if dtype.kind in "ui":
        white = min(np.iinfo(dtype).max, 4_400_000_000)
    numbers = (np.rint(unit * white) if white > 1 else unit).astype(dtype)
    path = frames_npz(tmp_path_factory.mktemp("d"), numbers)
    world = understood(path, data=f"range: [0, {white}]")
    given = world.given(torch.arange(5)).numpy()[:, 0]
    np.testing.assert_allclose(given, unit[[0, 1, 2, 3, 5], 0], atol=4e-3)


def png_of_16_bit_colour(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colour_of_16_bits_stays_that(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (10, SIDE, SIDE, 3)).astype(np.uint16)
    for i, picture in enumerate(pixels):
        (tmp_path / f"s{i // 2}").mkdir(exist_ok=True)
        (tmp_path / f"s{i // 2}" / f"{i % 2}.png").write_bytes(png_of_16_bit_colour(picture))
    shown = understood(tmp_path).given(torch.tensor([0]))[0, 0].numpy()
    np.testing.assert_allclose(shown, np.moveaxis(pixels[0], -1, 0) / 65535, rtol=1e-6)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_that_is_stored_turned_is_refused(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    answered(tmp_path, lambda i: MASK)
    (tmp_path / "images" / "c0.png").unlink()
    for suffix in ("jpg", "png", "tif", "webp"):
        save(grey(0), tmp_path / "images" / f"c0.{suffix}", exif=exif)
        refused_in_one_line(tmp_path, "it is stored turned")
        (tmp_path / "images" / f"c0.{suffix}").unlink()


def inverted(folder):
    tifffile = pytest.importorskip("tifffile")
    answered(folder, lambda i: MASK)
    for i in range(6):
        (folder / "images" / f"c{i}.png").unlink()
        tifffile.imwrite(
            folder / "images" / f"c{i}.tif", grey(i, np.uint16, 65535), photometric="miniswhite"
        )


def cut_colours(folder):
    tifffile = pytest.importorskip("tifffile")
    for i in range(10):
        (folder / f"s{i // 2}").mkdir(exist_ok=True)
        colours = np.random.default_rng(i).integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
        tifffile.imwrite(folder / f"s{i // 2}" / f"{i}.tif", colours, photometric="rgb")


def merged_gif(folder):
    for n in range(5):
        first, *others = [Image.fromarray(grey(min(t, 5) + n)) for t in range(10)]
        save(first, folder / f"{n}.gif", save_all=True, append_images=others, duration=100)


DECODED_OTHERWISE = {
    "0 is white": (inverted, "0 is white in it"),
    "16-bit colour in a TIFF": (cut_colours, "more than 8 bits a colour"),
    "equal frames of a GIF": (merged_gif, r"frames that last equally; they last \[100, 500\] ms"),
}


@pytest.mark.parametrize("kind", DECODED_OTHERWISE)
def test_what_a_decoder_would_change_is_refused(kind, tmp_path):
    make, why = DECODED_OTHERWISE[kind]
    make(tmp_path)
    refused_in_one_line(tmp_path, why)


def test_signed_16_bit_tiffs_are_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    answered(tmp_path, lambda i: MASK)
    for i in range(6):
        (tmp_path / "images" / f"c{i}.png").unlink()
        tifffile.imwrite(
            tmp_path / "images" / f"c{i}.tif", grey(i, np.int16, 2000) - np.int16(1000)
        )
    refused_in_one_line(tmp_path, "range: null")
    shown = understood(tmp_path, data="range: [-1000, 1000]").given(torch.tensor([0]))[0, 0]
    np.testing.assert_allclose(shown, grey(0, np.int16, 2000) / 2000, atol=1e-6)


def test_a_video_has_the_frames_that_are_in_it(tmp_path):
    """Not as many as its clock would need."""
    imageio = pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as iio

    frames = np.stack([np.full((64, 64, 3), 40 * t, np.uint8) for t in range(6)])
    for n in range(5):
        source = tmp_path / "plain" / f"{n}.mp4"
        source.parent.mkdir(exist_ok=True)
        iio.imwrite(source, frames, plugin="FFMPEG", fps=5)
        (tmp_path / "d").mkdir(exist_ok=True)
        slowed = ["-filter:v", "setpts=if(eq(N\\,3)\\,PTS+5/TB\\,PTS)", "-fps_mode", "passthrough"]
        exe = imageio.get_ffmpeg_exe()
        os.spawnv(
            os.P_WAIT,
            exe,
            [exe, "-v", "quiet", "-i", str(source), *slowed, str(tmp_path / "d" / f"{n}.mp4")],
        )
    assert {*understood(tmp_path / "d").data.cases.lengths} == {6}


# ---------------------------------------------------------------- layouts


def layout(*patterns, other=()):
    """A maker of folders with a picture or a mask for each pattern, {i} the number of a case."""

    def make(folder):
        for i, (pattern, content) in itertools.product(range(6), patterns):
            save(grey(i) if content == "frame" else MASK, folder / pattern.format(i=i))
        for name in other:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"?")

    return make


F, M = "frame", "mask"
# (the files, what is said of them: None if they can only be refused, "" if nothing is needed)
LAYOUTS = {
    "train/image, train/label": (
        layout(
            ("train/image/{i}.png", F),
            ("train/label/{i}.png", M),
            ("test/image/{i}.png", F),
            ("test/label/{i}.png", M),
        ),
        "frames: '{split}/image/{case}.png', answers: '{split}/label/{case}.png'",
    ),
    "imgs, masks": (
        layout(("imgs/{i}.png", F), ("masks/{i}.png", M)),
        "frames: 'imgs/{case}.png', answers: 'masks/{case}.png'",
    ),
    "image, mask": (
        layout(("image/{i}.png", F), ("mask/{i}.png", M)),
        "frames: 'image/{case}.png', answers: 'mask/{case}.png'",
    ),
    "x.tif, x_mask.tif": (
        layout(("x{i}.tif", F), ("x{i}_mask.tif", M)),
        "frames: 'x{case}.tif', answers: 'x{case}_mask.tif'",
    ),
    "other pictures": (layout(("images/{i}.ppm", F), ("masks/{i}.png", M)), None),
    ".dcm beside": (
        layout(("images/{i}.png", F), ("masks/{i}.png", M), other=["images/0.dcm"]),
        "ignore: 'images/*.dcm'",
    ),
    "a folder beside": (
        layout(("images/{i}.png", F), ("masks/{i}.png", M), ("preview/{i}.png", F)),
        "ignore: 'preview/*'",
    ),
    "LabelMe": (
        layout(
            ("c{i}_json/img.png", F), ("c{i}_json/label.png", M), ("c{i}_json/label_viz.png", F)
        ),
        "frames: '{case}/img.png', answers: '{case}/label.png', ignore: '*/label_viz.png'",
    ),
    "modalities": (
        layout(
            *((f"c{{i}}/{name}.png", F) for name in ("flair", "t1", "t2")), ("c{i}/masks/a.png", M)
        ),
        "frames: '{case}/t1.png', answers: '{case}/masks/a.png', ignore: '*/(flair|t2).png'",
    ),
    "two stems": (layout(("images/{i}.png", F), ("images/{i}.jpg", F), ("masks/{i}.png", M)), None),
    "01 and 1": (layout(("images/{i}.png", F), ("images/0{i}.png", F), ("masks/{i}.png", M)), None),
    "a and A": (
        layout(("images/a{i}.png", F), ("images/A{i}.png", F), ("masks/a{i}.png", M)),
        None,
    ),
    "masks_1 and .gif in masks_2": (
        layout(("images/{i}.png", F), ("masks_1/{i}.png", M), ("masks_2/{i}.gif", M)),
        "",
    ),
    "masks/anna": (layout(("images/{i}.png", F), ("masks/anna/{i}.png", M)), ""),
    "masks/anna, masks/ben": (
        layout(("images/{i}.png", F), ("masks/anna/{i}.png", M), ("masks/ben/{i}.png", M)),
        "",
    ),
}
IN_PLACE = {"masks_1 and .gif in masks_2": 2, "masks/anna, masks/ben": 2}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_other_layouts_are_read_if_they_are_said_and_refused_if_not(kind, tmp_path):
    make, said = LAYOUTS[kind]
    make(tmp_path)
    if said != "":
        refused_in_one_line(tmp_path)
    if said is not None:
        world = understood(tmp_path, data=said)
        assert (world.answer_levels.kind, len(world)) == ("mask", 6 if "split" in said else 5)
        assert {*world.counts.tolist()} == {IN_PLACE.get(kind, 1)}
        np.testing.assert_array_equal(
            right(world)[:, 0, 0], np.broadcast_to(MASK, (len(world), SIDE, SIDE))
        )
        shown = {
            tuple((255 * picture).round().flatten().tolist())
            for picture in world.given(torch.arange(len(world)))[:, 0].numpy()
        }
        assert shown <= {tuple(grey(i).astype(float).flatten().tolist()) for i in range(6)}
        # What was understood says the same again, in a file.
        (tmp_path / "data.yaml").write_text(world.data.description.as_yaml())
        assert understood(tmp_path).data.record() == world.data.record()


def test_cases_of_one_name_in_two_splits_have_two_names(tmp_path):
    for split, i in itertools.product(("train", "test"), range(3)):
        save(grey(i), tmp_path / split / "images" / f"{i}.png")
        save(MASK, tmp_path / split / "masks" / f"{i}.png")
    names = [name for split in ("train", "test") for name in understood(tmp_path, split).names]
    assert len({*names}) == 6


OTHERWISE = {
    "another format": lambda name: f"{name}.jpg",
    "zeros": lambda name: f"0{name}.png",
    "capitals": lambda name: f"{name}.png".swapcase(),
}


@EXAMPLES
@given(
    name=st.from_regex(r"[0-9]{1,3}[a-c]{1,2}", fullmatch=True),
    kind=st.sampled_from(sorted(OTHERWISE)),
    place=st.sampled_from(["images", "masks"]),
)
def test_two_names_for_one_case_are_refused(tmp_path_factory, name, kind, place):
    folder = answered(tmp_path_factory.mktemp("d"), lambda i: MASK)
    for sub in ("images", "masks"):
        save(grey(9) if sub == "images" else MASK, folder / sub / f"{name}.png")
    assert len(understood(folder)) + len(understood(folder, "test")) == 7
    save(grey(9) if place == "images" else MASK, folder / place / OTHERWISE[kind](name))
    refused_in_one_line(folder, "is there too")


PARTS = st.sampled_from(["images", "masks", "a", "b1", "s0", "s1", "train", "label", "7", "x_mask"])
SUFFIXES = st.sampled_from(
    [".png", ".jpg", ".gif", ".dcm", ".nii.gz", ".npy", ".txt", ".json", "", ".pgm"]
)
TREES = st.lists(
    st.tuples(st.lists(PARTS, min_size=1, max_size=3), SUFFIXES), min_size=1, max_size=12
)


@settings(parent=EXAMPLES, max_examples=200)
@given(tree=TREES, conditions=st.sampled_from([0, 1]), unlabelled=st.booleans())
def test_every_file_of_any_tree_is_read_or_named(tmp_path_factory, tree, conditions, unlabelled):
    """Or the whole is refused."""
    folder = tmp_path_factory.mktemp("d")
    files = {}
    for i, (parts, suffix) in enumerate(tree):
        path = folder.joinpath(*parts).with_name(parts[-1] + suffix)
        if any(parent.is_file() for parent in path.parents) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix in (".png", ".jpg", ".gif"):
            Image.fromarray(grey(i)).save(path)
        else:
            path.write_bytes(b"?")
        files[str(path.relative_to(folder))] = suffix
    more = dict(answers="none") if unlabelled and conditions else {}
    try:
        world = understood(folder, "test", num_cond_frames=conditions, **more)
    except SettingError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    cases = world.data.cases
    read = sum(cases.lengths) + (sum(cases.counts) if not more else 0)
    data = [name for name, suffix in files.items() if suffix not in TEXTS]
    answers = [name for name in data if more and "masks" in name.split("/")]
    assert read == len(data) - len(answers)
    said = " ".join(cases.notices)
    texts = [name for name in files if name not in data]
    assert not texts or f"{folder}: not read: " in said


# ---------------------------------------------------------------- files that cannot be read


def test_links_and_folders_that_cannot_be_followed_are_named(tmp_path):
    answered(tmp_path / "d", lambda i: MASK)
    (tmp_path / "d" / "images" / "c9.png").symlink_to(tmp_path / "nothing.png")
    assert "images/c9.png" in refused_in_one_line(tmp_path / "d", "files that can be opened")
    (tmp_path / "d" / "images" / "c9.png").unlink()
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d")
    assert "again" in refused_in_one_line(tmp_path / "d", "without a link to one above")
    (tmp_path / "d" / "again").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d" / "masks").rename(tmp_path / "elsewhere" / "masks")
    (tmp_path / "d" / "masks").symlink_to(tmp_path / "elsewhere" / "masks")
    assert len(understood(tmp_path / "d")) == 5


def zipped_pictures(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", b"?")


def torch_file(path):
    torch.save(dict(frames=torch.zeros(6, 2, 8, 8)), path)


def objects(path):
    np.savez(path, frames=np.array([None, 1], object))


def nan_groups(path):
    frames = np.stack([grey(i) for i in range(6)])
    np.savez(
        path, frames=frames, answers=frames > 99, groups=np.array([0, 1, np.nan, np.nan, 2, 3])
    )


def unread(path):
    frames = np.stack([grey(i) for i in range(12)]).reshape(6, 2, SIDE, SIDE)
    np.savez(path, frames=frames, segmentation=frames > 99)


NO_ARRAYS = {
    zipped_pictures: "an .npz that can be read",
    torch_file: "an .npz that can be read",
    objects: "frames",
    nan_groups: "`groups` of shape",
    unread: "`segmentation` .* is not",
}


@pytest.mark.parametrize("make", NO_ARRAYS, ids=lambda make: make.__name__)
def test_archives_that_are_no_arrays_are_refused_in_one_line(make, tmp_path):
    make(tmp_path / "d.npz")
    refused_in_one_line(tmp_path / "d.npz", NO_ARRAYS[make])
