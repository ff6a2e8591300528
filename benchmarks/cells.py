"""Evaluations that are kept: a finished one is never run again, a killed one leaves nothing behind."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path


def run_cell(argv: list[str], outdir: Path) -> dict:
    """The record of `evaluate.py ARGV`, from outdir/cells if it is there. A cell is known by its
    settings and, with a trained network, by the bytes of its checkpoint."""
    import evaluate
    from config import record

    settings, path = evaluate.parse(argv)
    key = json.dumps(record(*settings.values()), sort_keys=True).encode()
    name = hashlib.sha256(key + (path.read_bytes() if path else b"")).hexdigest()[:16]
    cell = outdir / "cells" / f"{name}.json"
    if not cell.is_file():
        cell.parent.mkdir(parents=True, exist_ok=True)
        from evaluation import make_evaluation

        result = evaluate.run(make_evaluation(settings, path))[2]
        temporary = cell.with_suffix(".tmp")
        temporary.write_text(json.dumps(result))
        temporary.replace(cell)
    return json.loads(cell.read_text())
