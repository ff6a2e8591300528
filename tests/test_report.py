"""The report, in a real browser that is offline."""

import json
import re
import shlex
import shutil
from html import unescape

import numpy as np
import pytest
from conftest import slow_but

import evaluate
import visualize
from diverse_sampling.steps import karras_sigmas
from lab import assemble

EXACT = "--denoiser exact --digits embedded --num_sets 2 --device cpu --num_steps 6".split()
GUIDED, ODD, PLANE, NOTHING, FRAMES = "guided", "a <b>&\"c'd %20", "plane", "nothing", "frames"
MIXTURE = "--dataset mixture --denoiser exact --num_sets 3 --batch_size 5 --pg_factor 3"
DIGITS = "--task unconditional --digits embedded --num_sets 1 --batch_size 3 --num_steps 4"
KINDS = {
    GUIDED: [*EXACT, *"--pg_factor 3 --sampler edm".split()],  # as many steps as the next
    ODD: EXACT,
    PLANE: f"{MIXTURE} --num_steps 6 --device cpu".split(),
    NOTHING: f"{DIGITS} --device cpu".split(),
    FRAMES: [*EXACT, *"--dataset frames --frames examples/blobs.npz --batch_size 4".split()],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of every kind, each with its report, and the report of two of them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in KINDS.items():
        evaluate.main([*flags, "--outdir", str(folder / name)])
        visualize.main(["report", str(folder / name), "--set", "0" if name == NOTHING else "1"])
    both = [str(folder / GUIDED), str(folder / ODD)]
    visualize.main(["report", *both, "--out", str(folder / "report.html")])
    return folder


@pytest.fixture(scope="module")
def browser():
    why = "the report's tests in a browser need"
    needed = f"{why} playwright: pip install playwright"
    sync_api = pytest.importorskip("playwright.sync_api", reason=needed)
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"{why} Chromium: PATH has none of {', '.join(names)}")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:  # a launcher without its browser, as Ubuntu's without snap
            pytest.skip(f"{why} Chromium: {path} does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def show(browser, folder):
    """show(run, width): the page of a run, "" for two of them. Errors and requests fail it."""
    seen, context = [], browser.new_context(offline=True)
    page = context.new_page()
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on(
        "request",
        lambda request: seen.append(request.url) if not request.url.startswith("data:") else None,
    )

    def call(run: str, width: int = 1280):
        page.set_viewport_size(dict(width=width, height=800))
        page.goto((folder / run / "report.html").as_uri())
        return page

    yield call
    context.close()
    assert all(re.match("file://.*/report.html$", each) for each in seen), seen


def values(scope) -> list[float]:
    """What stands in the numbers, after a look at whether they show it."""
    found = [
        (float(each.get_attribute("value")), float(each.inner_text()))
        for each in scope.locator("data").all()
    ]
    for value, shown in found:
        assert shown == pytest.approx(value, rel=0.051, abs=6e-4)
    return [value for value, _ in found]


def picture(image) -> np.ndarray:
    """The grey levels of an <img>, as the browser decodes them."""
    return np.array(
        image.evaluate("""image => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        return [...data].filter((_, i) => i % 4 == 0);
    }""")
    )


@pytest.mark.parametrize("run", slow_but([ODD, FRAMES], KINDS))
def test_numbers_are_those_of_the_run(show, folder, run):
    page, result = show(run), json.loads((folder / run / "metrics.json").read_text())
    assert page.locator("h2").inner_text() == run
    for key, metric in result.items():
        if isinstance(metric, dict) and "ci95" in metric:
            expected = [metric["mean"], *(metric["ci95"] or [])]
            assert values(page.locator(f"[data-metric={key}]")) == expected
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for key, value in result["settings"].items():
        if key != "outdir":
            shown = page.locator(f"[data-setting={key}] td").first.inner_text()
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert shown == ("none" if value is None else text.strip())
    first = "quality" if run == FRAMES else "modes_found"
    assert values(page.locator(".set").nth(0))[0] == result[first]["per_set"][0]
    sources = {
        each.get_attribute("data-source"): each.inner_text()
        for each in page.locator("[data-source]").all()
    }
    assert sources["Torch"] == result["versions"]["torch"]
    assert sources["Commit"] == (result["commit"] or "none")
    assert sources["Checkpoint"] == (result["checkpoint_sha256"] or "none")
    assert shlex.split(sources["Command"])[-1] == str(folder / run / "config.yaml")


@pytest.mark.parametrize("run", [GUIDED, FRAMES])
def test_sets_are_those_of_the_run(show, folder, run):
    page = show(run)
    with np.load(folder / run / "samples.npz") as file:
        samples, cond = file["samples"], file["cond"]
        modes, answers = (file.get(key, [[]] * len(cond)) for key in ("modes", "answers"))
    for g, row in enumerate(page.locator(".set").all()):
        images = row.locator("img").all()
        for image, expected in zip(images, [cond[g, -1], *answers[g], *samples[g]], strict=True):
            assert (abs(picture(image) - 255 * expected.clip(0, 1).ravel()) < 0.51).all()
        assert row.locator(".new").count() == len(set(modes[g]))
        assert all(image.get_attribute("alt") for image in images)


def test_the_slider_shows_the_steps(show, folder):
    """From the keyboard. The last D(x), which is not guided, is the sample up to sigma_min."""
    page = show(GUIDED)
    slider, read, marker = (
        page.locator(each) for each in ("input[type=range]", ".steps output", ".marker")
    )
    last = page.locator("[data-kind=denoised] img").first
    states = []
    slider.focus()
    page.keyboard.press("Home")
    for sigma in karras_sigmas(6, 0.002, 80.0, 7.0)[:-1].tolist():
        shown = re.sub(r"\.?0+$", "", read.inner_text().split(", ")[1])
        assert shown == f"σ = {float(f'{sigma:.3g}'):g}"
        assert slider.get_attribute("aria-valuetext") == read.inner_text()
        states.append(
            (
                read.inner_text(),
                marker.bounding_box()["x"],
                page.locator("[data-kind=x] img").last.get_attribute("src"),
                last.get_attribute("src"),
            )
        )
        page.keyboard.press("ArrowRight")
    different = [len(set(column)) for column in zip(*states)]
    assert different[:3] == [6, 6, 6] and different[3] > 2  # D(x) may arrive before the end
    with np.load(folder / GUIDED / "samples.npz") as file:
        assert abs(picture(last) - 255 * file["samples"][1, 0].clip(0, 1).ravel()).max() < 4
    assert "Particle" not in page.locator(".both").inner_text()  # nothing was drawn again


def test_the_slider_of_a_window_names_the_levels_that_the_denoiser_saw(show, folder):
    """Noise is added back before each of its steps."""
    page = show(PLANE)
    argv = ["--config", str(folder / PLANE / "config.yaml")]
    schedule = assemble.evaluation(argv).sampler.schedule
    levels = schedule.sigmas[:-1] * (1 + schedule.churn)
    page.locator("input[type=range]").press("Home")
    for n, sigma in enumerate(levels.tolist()):
        read = re.fullmatch(r"(\d+) of (\d+), σ = (.*)", page.locator(".steps output").inner_text())
        assert (int(read[1]), int(read[2])) == (n + 1, schedule.num_steps)
        assert float(read[3]) == pytest.approx(sigma, rel=6e-3)
        page.locator("input[type=range]").press("ArrowRight")


def test_the_chart_has_the_norms_of_both_drifts(show):
    page = show(GUIDED)
    page.locator("input[type=range]").press("Home")
    # The norm of unit noise of 32 x 32 px is 32.
    assert 28 < float(page.locator(".at-ode").get_attribute("value")) < 36
    assert page.locator(".at-guidance").inner_text() == "0"
    guidance = []
    for _ in range(8):
        page.locator("input[type=range]").press("ArrowRight")
        guidance.append(float(page.locator(".at-guidance").get_attribute("value")))
    assert max(guidance) > 0.1 and guidance[-1] == 0
    lines = [page.locator(f"polyline.{name}").count() for name in ("ode", "guidance")]
    assert lines == [8 + 1, 8 + 1]
    assert show(ODD).locator("polyline.guidance").count() == 0


def test_two_runs_stand_side_by_side(show):
    page = show("")
    one, two = (article.bounding_box() for article in page.locator("article").all())
    assert [name.inner_text() for name in page.locator("h2").all()] == [GUIDED, ODD]
    assert one["y"] == two["y"] and one["x"] + one["width"] < two["x"]
    differing = {row.get_attribute("data-setting") for row in page.locator("tr:has(mark)").all()}
    assert differing == {"pg_factor"}
    page.locator("input[type=range]").first.press("Home")
    assert [each.inner_text() for each in page.locator("output").all()] == ["1 of 6, σ = 80.0"] * 2


@pytest.mark.parametrize("run", slow_but(["", PLANE], ["", *KINDS]))
def test_a_phone_does_not_scroll_sideways(show, run):
    page = show(run, 360)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [article.bounding_box() for article in page.locator("article").all()]
    assert all(a["y"] + a["height"] <= b["y"] for a, b in zip(boxes, boxes[1:]))


def test_dark_where_the_system_is_and_where_asked_for(show):
    page, brightness = show(PLANE), []
    colour = "getComputedStyle(document.body).backgroundColor"
    background = f"Math.max(...{colour}.match(/[0-9.]+/g).slice(0, 3))"
    for act in (
        lambda: page.emulate_media(color_scheme="light"),
        lambda: page.emulate_media(color_scheme="dark"),
        lambda: page.locator("#theme").click(),
    ):
        act()
        brightness.append(page.evaluate(background))
    assert [each > 128 for each in brightness] == [True, False, True]


@pytest.mark.parametrize("run", ["", *KINDS])
def test_nothing_is_fetched_and_nothing_unescaped(folder, run):
    html = (folder / run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link|<script[^>]+src", html)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', html))
    assert "<b>&" not in html


def test_a_single_set_has_no_interval_and_the_report_says_so(folder):
    """Without a browser: the metrics of one set, against those of two."""
    single = (folder / NOTHING / "report.html").read_text(encoding="utf-8")
    several = (folder / GUIDED / "report.html").read_text(encoding="utf-8")
    result = json.loads((folder / NOTHING / "metrics.json").read_text())
    assert result["num_sets"] == 1 and result["confidence"]["ci95"] is None
    row = re.search(r'<tr data-metric="confidence">.*?</tr>', single, flags=re.S)
    assert row and "one set, no interval" in row[0] and row[0].count("<data") == 1
    row = re.search(r'<tr data-metric="quality">.*?</tr>', several, flags=re.S)
    assert row and "no interval" not in row[0] and row[0].count("<data") == 3


def test_a_report_names_the_method_and_the_metrics(folder):
    html = unescape((folder / GUIDED / "report.html").read_text(encoding="utf-8"))
    assert "circle_jumping, particle guidance, factor 3, EDM's sampler" in html
    assert "circle_jumping, independent" in (folder / ODD / "report.html").read_text("utf-8")
    for key, name in (("modes_found", "Modes found"), ("hm_iou", "HM IoU*"), ("ged", "GED")):
        row = re.search(rf'<tr data-metric="{key}"><th scope="row">(.*?)</th>', html, flags=re.S)
        assert row and name in row[1]


def test_a_damaged_run_is_refused(folder, tmp_path, refused, capsys):
    shutil.copytree(folder / GUIDED, tmp_path / "run")
    samples = tmp_path / "run" / "samples.npz"
    samples.write_bytes(samples.read_bytes()[:-100])
    capsys.readouterr()
    for command in ("figure", "report"):
        line = refused(visualize.main, [command, str(tmp_path / "run")])
        assert "an .npz that can be read" in line


def test_folders_without_a_run_are_refused(folder, tmp_path, refused):
    run = str(folder / GUIDED)
    assert "run: got" in refused(visualize.main, ["report", run, str(tmp_path)])
    (tmp_path / "metrics.json").write_text("[]")
    assert "run: got" in refused(visualize.main, ["report", str(tmp_path)])
    line = refused(visualize.main, ["report", run, "--set", "2"])
    assert "set: got 2; accepted: 0 to 1" in line
