"""What metrics, methods and sources are called: tables, charts, sheets, the report and the
documentation take their words from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diverse_sampling import method


@dataclass(frozen=True)
class Metric:
    """How a metric is written for readers.

    Arguments:
        title: its name inside a sentence or a table
        note: its unit, or what it refers to; may be empty
        decimals: digits after the decimal point
        less_is_better: True if 0 is best, False if more is better, None if neither holds
    """

    title: str
    note: str = ""
    decimals: int = 2
    less_is_better: bool | None = None

    @property
    def heading(self) -> str:
        """The title as it begins a line: `Modes found`."""
        return self.title[0].upper() + self.title[1:]

    @property
    def label(self) -> str:
        """The title with its note, for an axis or a colour bar: `quality (L2, less is better)`."""
        return f"{self.title} ({self.note})" if self.note else self.title


# Keys are those of metrics.json, the ones that a reader wants first at the top. `p_right` is the
# first of `mode_frequencies` in a world whose first direction is right.
METRICS: dict[str, Metric] = dict(
    modes_found=Metric("modes found", "mean over sets", 2, False),
    modes_shown=Metric("modes shown", "with an image that is their answer, IoU > 0.5", 2, False),
    p_right=Metric("p(right)", "share of all particles", 3),
    quality=Metric("quality", "L2, less is better", 2, True),
    confidence=Metric("confidence", "of a network that judges", 3, False),
    agreement=Metric("agreement of judges", "share of samples", 3, False),
    composition_met=Metric("sets as asked for", "share of sets", 3, False),
    shares_error=Metric("largest error of a share", "", 3, True),
    coverage=Metric("likely classes shown", "share of those with 5% or more", 3, False),
    coverage_iid=Metric("likely classes in independent draws", "expected share", 3),
    classes_covered=Metric("number of likely classes shown", "in a set", 2, False),
    covered_iid=Metric("number of likely classes in independent draws", "expected", 2),
    classes_likely=Metric("number of likely classes", "of a set", 2),
    nearest_in_class=Metric("nearest of its class", "L2 to a known picture", 2),
    test_nearest_in_class=Metric("of test pictures", "L2 to a known picture of its class", 2),
    judge_accuracy=Metric("judge is right", "share of test pictures", 3, False),
    energy_score=Metric("energy score", "less is better", 3, True),
    fair_energy_score=Metric("fair energy score", "as of an infinitely large set", 3, True),
    spread_skill=Metric("spread-skill ratio", "spread over error of the mean, 1 is calibrated", 3),
    hm_iou=Metric("HM IoU*", "1 is perfect", 3, False),
    ci_score=Metric("CI score", "collective insight; 1 is perfect", 3, False),
    d_max=Metric("D_max", "Dice of the most similar sample, mean over answers", 3, False),
    mean_iou=Metric("mean IoU", "with the most similar answer", 3, False),
    displacement=Metric("displacement", "mean, outwards inside modes, in sd", 2, True),
    spread_inside=Metric("spread inside modes", "in sd, 1 as it should be", 2),
    within_3_sd=Metric("within 3 sd", "share of points this near a centre", 3, False),
    largest_distance_sd=Metric("largest distance", "from a centre, sd", 2, True),
    ged=Metric("GED", "generalised energy distance, squared; 0 is perfect", 3, True),
    iou_distance=Metric("IoU distance", "between particles of a set", 3),
    answers_iou_distance=Metric("IoU distance of answers", "between answers to a case", 3),
    distance_to_answers=Metric("IoU distance to answers", "between a particle and an answer", 3),
    excess_spread=Metric("excess spread", "IoU distance of particles minus of answers", 3),
    class_iou=Metric("IoU of class", "with the most similar answer", 3, False),
    pairwise_l2=Metric("L2 distance", "between particles of a set", 2),
    centroid_spread=Metric("spread of centroids", "within a set, px", 2),
    vendi=Metric("Vendi score", "effective number of different particles in a set", 2),
    rke=Metric("RKE", "a Vendi score of order 2", 2),
    equivalent_draws=Metric("equivalent draws", "independent ones that find as many modes", 1),
    frequency_tv=Metric("frequencies off by", "total variation from the prior", 3, True),
    frequency_tv_iid=Metric(
        "by chance", "total variation of right frequencies, if sets vary so", 3
    ),
    count_dispersion=Metric("dispersion of counts", "1 for independent draws", 3),
    count_variance_ratio=Metric("variance of counts over binomial", "1 for independent draws", 3),
    modes_expected_iid=Metric("independent draws", "expected modes", 2, False),
    network_calls=Metric("network calls", "per particle", 1, True),
    backward_calls=Metric("backward calls", "per particle", 1, True),
    price=Metric("price", "network calls per sample, a backward pass as 1.3", 1, True),
    modes_per_100_calls=Metric("modes per 100 network calls", "of a set", 2, False),
    pilot_calls=Metric("pilot", "network calls per sample", 1, True),
    sigma_min=Metric("last noise level", "before 0", 3),
    seconds=Metric("seconds", "of sampling", 1, True),
)

# Settings that are axes of an experiment. Those that are not here go by their own names.
AXES: dict[str, str] = dict(
    pg_factor="strength (pg_factor)",
    pg_kernel="kernel",
    s_churn="churn, all steps (s_churn)",
    window_churn="noise per step (window_churn)",
    num_steps="steps",
    rho=r"schedule exponent $\rho$",
    p="p(right) in training",
)

# How guidance by a potential is differentiated, beside D(x) alone.
SPACES = dict(jacobian="through the Jacobian", difference="by differences")
INDEPENDENT = "independent"  # sets that nothing acts on


def metric(key: str) -> Metric:
    """How the metric with this key of metrics.json is written.

    One that METRICS lacks goes by its key."""
    return METRICS.get(key) or Metric(key.replace("_", " "))


def method_of(settings: dict[str, Any]) -> str:
    """What made the sets of an evaluation diverse, in words: `particle guidance, factor 1.7`.

    `settings` is the flat record of config.yaml. Sets that no guidance acts on and whose noise is
    not coupled are `independent`. A method that there is not goes by its flag's value.
    """
    guidance = _shown("guidance", settings)
    parts = [guidance]
    if guidance and settings.get("guidance", "pg") == "pg" and settings.get("sampler") == "edm":
        parts.append("EDM's sampler")
    space = settings.get("pg_space")
    if guidance and settings.get("guidance", "pg") == "pg" and space in SPACES:
        parts.append(SPACES[space])
    if guidance and settings.get("sequential", 1) > 1:
        parts.append(f"{settings['sequential']} draws in sequence")
    if settings.get("medoids_of", 1) > 1:
        parts.append(f"medoids of {settings['medoids_of']} times as many")
    if settings.get("pool", 1) > 1:
        parts.append(f"pool of {settings['pool']} times as many")
    parts.append(_shown("noise", settings))
    churn_noise = settings.get("churn_noise", "iid")
    if churn_noise != "iid":
        parts.append(f"{churn_noise} churn")
    return ", ".join(filter(None, parts)) or INDEPENDENT


def _shown(flag: str, settings: dict[str, Any]) -> str:
    """The method that a flag names, with what it shows of its settings; "" where nothing acts."""
    name = settings.get(flag, "pg" if flag == "guidance" else "iid")
    if name not in method.names(flag):
        return name
    found = method.find(flag, name)
    if found is None:
        return ""
    if "pg_factor" in found.shown and not settings.get("pg_factor"):
        return ""
    told = (words.format(settings[key]) for key, words in found.shown.items() if key in settings)
    return found.title + "".join(told)


def named(dataset: str, source: str) -> str:
    """Where a world's pictures come from: `mnist digits`, or the path of the user's own frames."""
    return source if dataset == "frames" else f"{source} digits"


def source_of(result: dict[str, Any]) -> str | None:
    """Where an evaluation's digits or frames come from; None in the plane, which has none.

    `result` is the record of metrics.json."""
    source = result["digits_source"]
    if source is None:
        return None
    return f"{named(result['dataset'], source)} (test split)"
