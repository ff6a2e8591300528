"""What a run has sampled so far: a file for each chunk of sets, written as soon as it is sampled.

A process that is killed loses the chunk that it was sampling; the same run goes on with the others.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from diverse_sampling.errors import SettingError
from lab.files import packed, write_whole
from worlds.files import read_npz

# The tensors of G sets: sets (G,) int64, their numbers; samples (G, B, H, W); rollout, what follows
# on them; calls (2,) float64 and seconds (), what they cost.
Chunk = dict[str, Tensor]
COST = ("calls", "seconds")


class Kept:
    """The chunks of a run in a folder. Its own folder inside it is named after the run.

    Arguments:
        folder: of the run
        key: its name, `records.key_of`
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder / "sets" / key

    def read(self) -> list[Chunk]:
        """All that are there; one that is broken is sampled again."""
        chunks = []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                arrays = read_npz(path, "sets")
            except SettingError:
                continue
            chunks.append({name: torch.from_numpy(array) for name, array in arrays.items()})
        return chunks

    def add(self, chunk: Chunk) -> None:
        """Write one. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{int(chunk['sets'][0]):07d}.npz", packed(chunk))

    def remove(self) -> None:
        """Delete all, now that they stand elsewhere."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def put_together(chunks: Sequence[Chunk]) -> Chunk:
    """All sets in the order of their numbers, and the calls that they cost together.

    Chunks may overlap: processes that do not see each other's files sample some sets twice, alike.
    """
    known: set[int] = set()
    parts: list[Chunk] = []
    for chunk in chunks:
        new = without(chunk, known)
        if len(new["sets"]):
            known.update(new["sets"].tolist())
            parts.append(new | dict(calls=chunk["calls"]))
    order = torch.cat([part["sets"] for part in parts]).argsort()
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    calls = whole.pop("calls").view(-1, 2).sum(0)
    return {name: values[order] for name, values in whole.items()} | dict(calls=calls)


def without(chunk: Chunk, numbers: set[int]) -> Chunk:
    """A chunk without the sets of these numbers; what it cost is left out."""
    left = torch.tensor([number not in numbers for number in chunk["sets"].tolist()])
    return {name: values[left] for name, values in chunk.items() if name not in COST}
