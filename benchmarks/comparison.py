"""All methods in four samplers at three prices, each with a strength that was searched for it.

    for s in 1 2 3; do
        python train.py --config configs/circle_jumping_unet.yaml --seed $s --outdir runs/seed$s
    done
    python benchmarks/comparison.py

The rows are those of comparison.yaml. The strength of a row (a method in a sampler) is the one of
seven with which sets show most modes, in the mean of two search models: the exact denoiser of an
unequal world, and the plain U-Net of training seed 1; of equals the weakest. The search has sets of
another seed and the middle price, and the reported U-Net has no part in it. Every row is then run
at every price, with several seeds. The U-Nets of training seeds 2 and 3 have no part in any choice:
each method runs on them at the middle price, in the sampler in which the search found most. A
finished cell stays in --outdir; processes of torchrun share the rows. Writes comparison.json,
comparison.md and comparison.png there, of what all rows have, after each seed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import measure
import numpy as np
import yaml

from diverse_sampling.errors import SettingError
from lab import assemble
from lab.command_line import as_flags, fail, this_process
from lab.experiments import brief, cell_of, interval, run_cell
from lab.metrics import mean_interval

PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
REPORTED = "plain U-Net"  # the model of the picture
# Seeds, sets of each seed, and of each cell of the search, by whether the denoiser is exact.
SEEDS = {True: range(3), False: range(10)}
SEARCH_SEED = 10
SETS = {True: 67, False: 10}
SEARCH_SETS = {True: 60, False: 8}
# Metrics whose sets are put together, with the arguments that `mean_interval` has for k modes.
POOLED: dict[str, Any] = dict(
    modes_found=lambda k: ((0, k), 1),
    modes_shown=lambda k: ((0, k), 1),
    quality=lambda k: (),
    hm_iou=lambda k: ((0, 1),),
)
AVERAGED = ("price", "backward_calls", "frequency_tv", "frequency_tv_iid", "count_dispersion")
SHARED = ("modes_expected_iid", "modes_total")


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    search_checkpoint: str = "runs/seed1/model.safetensors"
    """plain U-Net of another training seed, on which strengths are searched"""
    trainings: Sequence[str] = ("runs/seed2/model.safetensors", "runs/seed3/model.safetensors")
    """plain U-Nets of more training seeds, which are reported beside the included one"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


@dataclass(frozen=True)
class Row:
    """A method in a sampler.

    Arguments:
        kind: coupled, or controls
        method, sampler: their names in the plan
        settings: flat {setting: value}
        tried: (the setting of its strength, the values that are tried); None without a search
        models: the names of those that it is run on
    """

    kind: str
    method: str
    sampler: str
    settings: dict[str, Any]
    tried: tuple[str, list] | None
    models: tuple[str, ...]


def is_exact(model: dict) -> bool:
    """Whether a model of the plan is the exact denoiser."""
    return model.get("denoiser") == "exact"


def rows() -> Iterator[Row]:
    """Every row of the plan, controls first."""
    for kind in ("controls", "coupled"):
        for method, described in PLAN[kind].items():
            own = dict(described)
            models = tuple(own.pop("models", PLAN["models"]))
            named = own.pop("samplers", kind == "coupled")
            samplers = PLAN["samplers"] if named else {"": {}}
            if isinstance(named, list):
                samplers = {name: samplers[name] for name in named}
            tried = next(((k, v) for k, v in own.items() if isinstance(v, list)), None)
            if tried is not None:
                del own[tried[0]]
            for sampler, flags in samplers.items():
                yield Row(kind, method, sampler, own | flags, tried, models)


class Cells:
    """The cells of the comparison, kept in a folder."""

    def __init__(self, args: Any):
        self.args = args
        self.search = {
            name: model or dict(checkpoint=args.search_checkpoint)
            for name, model in PLAN["search"].items()
        }
        self.trainings = {
            f"{REPORTED}, training {n}": dict(checkpoint=path)
            for n, path in enumerate(args.trainings, 2)
        }
        self.models = PLAN["models"] | self.trainings
        self.found: dict[tuple[str, str], dict[str, Any]] = {}  # finished searches

    def runs(self, row: Row, run: bool) -> Iterator[tuple[str, float, range]]:
        """(a model, a price, its seeds) of all that is reported of a row."""
        for name, price in itertools.product(row.models, PLAN["prices"]):
            yield name, price, SEEDS[is_exact(PLAN["models"][name])]
        if REPORTED in row.models and self.is_best(row, run):
            for name in self.trainings:
                yield name, PLAN["searched_at"], SEEDS[True]

    def is_best(self, row: Row, run: bool) -> bool:
        """Whether the search found most in this sampler of a method, of equals the first one."""
        most: dict[str, float] = {}
        for other in rows():
            if other.method == row.method and (searched := self.searched(other, run)):
                shown = searched["shown"].get(searched["chosen"], {})
                most[other.sampler] = sum(shown.values())
        return row.sampler == max(most, key=lambda sampler: most[sampler])

    def searched_on(self, row: Row) -> dict[str, dict]:
        """The search models of the kinds that a row is run on: exact denoisers, networks, both."""
        kinds = {is_exact(PLAN["models"][name]) for name in row.models}
        return {name: model for name, model in self.search.items() if is_exact(model) in kinds}

    def settings(self, row: Row, model: dict, price: float, strength: Any) -> dict[str, Any]:
        """The flat {setting: value} of a cell, without its seed and its number of sets."""
        chosen = {} if row.tried is None else {row.tried[0]: strength}
        values = PLAN["settings"] | model | row.settings | chosen
        return values | dict(price=price, data_root=self.args.data_root)

    def result(self, values: dict, run: bool) -> dict | None:
        """The record of a cell, {} if its price is too low; None if it is not there and not run."""
        cell = None
        try:
            settings, checkpoint = assemble.complete(values)
            cell = cell_of(settings, checkpoint, self.args.outdir)
            if not run and not cell.is_file():
                return None
            return run_cell(settings, checkpoint, self.args.outdir)
        except SettingError as error:
            if cell is None or not str(error).startswith("price:"):
                raise SettingError(f"{error} (in the cell {' '.join(as_flags(values))})") from None
            cell.write_text("{}")
            return {}

    def searched(self, row: Row, run: bool) -> dict[str, Any] | None:
        """{the chosen strength, what each model showed with every one}; None if not finished."""
        key = (row.method, row.sampler)
        if key not in self.found and (searched := self.search_of(row, run)) is not None:
            self.found[key] = searched
        return self.found.get(key)

    def search_of(self, row: Row, run: bool) -> dict[str, Any] | None:
        """As `searched`, from the cells.

        A strength that the middle price does not reach for is out. One that cannot win any more,
        whatever the second model shows with it, is not tried on that one.
        """
        if row.tried is None:
            return dict(chosen=None, shown={})
        models = self.searched_on(row)
        most = PLAN["settings"]["batch_size"]
        shown: dict[float, dict[str, float]] = {strength: {} for strength in row.tried[1]}
        best = 0.0  # of those that were tried on all models
        for n, (name, model) in enumerate(models.items()):
            for strength in sorted(shown, key=lambda strength: -sum(shown[strength].values())):
                if sum(shown[strength].values()) + most * (len(models) - n) < best:
                    continue
                values = self.settings(row, model, PLAN["searched_at"], strength)
                values |= dict(seed=SEARCH_SEED, num_sets=SEARCH_SETS[is_exact(model)])
                result = self.result(values, run)
                if result is None:
                    return None
                if not result:
                    del shown[strength]
                    continue
                shown[strength][name] = result["modes_shown"]["mean"]
                if n == len(models) - 1:
                    best = max(best, sum(shown[strength].values()))
        finished = [strength for strength in shown if len(shown[strength]) == len(models)]
        best_of = max(finished, key=lambda strength: (sum(shown[strength].values()), -strength))
        return dict(chosen=best_of, shown=shown)

    def reported(self, row: Row, name: str, price: float, strength: Any, seed: int, run: bool):
        """The record of a row on a model with one seed, as `result`, and its flags."""
        model = self.models[name]
        values = self.settings(row, model, price, strength)
        values |= dict(seed=seed, num_sets=SETS[is_exact(model)])
        result = self.result(values, run)
        del values["data_root"]  # where the digits lie is nobody else's matter
        return result, " ".join(as_flags(values))


def pooled(results: list[dict]) -> dict[str, Any]:
    """One result of those of several seeds: sets together, other numbers as their means."""
    together: dict[str, Any] = {}
    for key in POOLED:
        per_set = np.concatenate([result[key]["per_set"] for result in results])
        together[key] = brief(mean_interval(per_set, *POOLED[key](results[0]["modes_total"])))
    for key in AVERAGED:
        together[key] = float(np.mean([result[key] for result in results]))
    together |= {key: results[0][key] for key in SHARED}
    draws = [result["equivalent_draws"] for result in results]
    together["equivalent_draws"] = dict(
        mean=float(np.mean([each["mean"] for each in draws])),
        at_least=all(each["at_least"] for each in draws),
    )
    together["num_sets"] = sum(result["num_sets"] for result in results)
    # One pilot serves all seeds.
    together["pilot"] = results[0]["pilot_calls"] * results[0]["num_sets"] / together["num_sets"]
    together["seeds"] = [result["modes_found"]["mean"] for result in results]
    return together


def gathered(cells: Cells) -> tuple[list[dict], list[dict]]:
    """(what the search showed of every row, the results at every price), of what is finished.

    A seed counts at a price if all rows have run with it there.
    """
    search: list[dict] = []
    held: list[tuple[dict, str, float, list]] = []  # a place, its model, price, and all seeds
    missing = set()
    for row in rows():
        searched = cells.searched(row, run=False)
        if searched is None:
            return [], []
        at = dict(kind=row.kind, method=row.method, sampler=row.sampler)
        search.append(at | searched)
        strength = searched["chosen"]
        ends = () if row.tried is None else (row.tried[1][0], row.tried[1][-1])
        place = at | dict(
            strength=strength, at_end=strength in ends, best=cells.is_best(row, run=False)
        )
        for name, price, seeds in cells.runs(row, run=False):
            each = [
                (seed, *cells.reported(row, name, price, strength, seed, run=False))
                for seed in seeds
            ]
            held.append((place, name, price, each))
            missing |= {(name, price, seed) for seed, result, _ in each if result is None}
    results = []
    for place, name, price, each in held:
        done = [
            (result, flags)
            for seed, result, flags in each
            if result and (name, price, seed) not in missing
        ]
        if done:
            about = dict(model=name, budget=price, flags=done[0][1])
            results.append(place | about | pooled([result for result, _ in done]))
    return search, results


def entry(row: dict) -> str:
    """A cell of a table: modes, quality, strength."""
    text = f"{interval(row['modes_found'])} at {interval(row['quality']).partition(' ')[0]}"
    strength = measure.strength(row)
    return f"{text} ({strength})" if strength else text


def markdown(results: list[dict]) -> str:
    """A table for each model and price: methods by samplers."""
    parts = []
    samplers = list(PLAN["samplers"])
    for name, price in itertools.product(PLAN["models"], PLAN["prices"]):
        here = [row for row in results if row["model"] == name and row["budget"] == price]
        if not here:
            continue
        lines = []
        for method in dict.fromkeys(row["method"] for row in here):
            by = {row["sampler"]: row for row in here if row["method"] == method}
            # A control has one sampler, EDM's unless its settings say otherwise.
            at = [
                by.get(sampler) or (by.get("") if i == 0 else None)
                for i, sampler in enumerate(samplers)
            ]
            lines.append([method, *(entry(row) if row else "" for row in at)])
        sets = "{num_sets} sets; independent draws find {modes_expected_iid:.2f} of {modes_total}"
        title = f"**{name}, {price:g} calls a sample** ({sets.format(**here[0])} in theory)"
        parts += [title, measure.table(f"method | {' | '.join(samplers)}", lines)]
    return "\n\n".join(filter(None, [*parts, trainings(results)]))


def trainings(results: list[dict]) -> str:
    """A table of all trainings of the plain U-Net: a row has a method in one sampler.

    It has the rows that ran on all of them, those that show most modes first.
    """
    price = PLAN["searched_at"]
    by: dict[tuple[str, str], dict[str, dict]] = {}
    for row in results:
        if row["model"].startswith(REPORTED) and row["budget"] == price:
            by.setdefault((row["method"], row["sampler"]), {})[row["model"]] = row
    names = max(by.values(), key=len, default={})
    if len(names) < 2:
        return ""
    each = [list(place.values()) for place in by.values() if len(place) == len(names)]
    each.sort(key=lambda place: -np.mean([row["modes_shown"]["mean"] for row in place]))
    lines = [[place[0]["method"], place[0]["sampler"], *map(entry, place)] for place in each]
    header = " | ".join(f"{row['model']}, {row['num_sets']} sets" for row in each[0])
    title = f"**All trainings of the {REPORTED}, {price:g} calls a sample**"
    return f"{title}\n\n{measure.table(f'method | sampler | {header}', lines)}"


def write(outdir: Path, found: list[dict], results: list[dict]) -> None:
    """Write what is finished."""
    from figures.charts import comparison
    from figures.drawing import save

    measure.save(outdir, "comparison", markdown(results), dict(search=found, rows=results))
    save(comparison(results, REPORTED), outdir / "comparison.png")


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    rank, ranks = this_process()
    cells = Cells(args)
    own = list(rows())[rank::ranks]
    try:
        strengths = []
        for row in own:
            searched = cells.searched(row, run=True)
            assert searched is not None  # all of its cells were run
            strengths.append(searched["chosen"])
        reported = [list(cells.runs(row, run=True)) for row in own]
        rounds = itertools.product(PLAN["prices"], SEEDS[False])
        # Every price with a seed before the next seed, the middle price first.
        for price, seed in sorted(
            rounds, key=lambda at: (at[1], abs(at[0] - PLAN["searched_at"]), at[0])
        ):
            for row, strength, runs in zip(own, strengths, reported):
                for name, at, seeds in runs:
                    if at == price and seed in seeds:
                        cells.reported(row, name, price, strength, seed, run=True)
            if rank == 0 and price == max(PLAN["prices"]):
                write(args.outdir, *gathered(cells))
    except (SettingError, FileNotFoundError) as error:
        fail(str(error))


if __name__ == "__main__":
    main()
