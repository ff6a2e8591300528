"""The text-to-image example, with a tiny random model from a local directory."""

import json
import re
import string
import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "examples"))

import diffusers  # noqa: E402
import test_pipelines  # noqa: E402
import text_to_image as example  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a Stable Diffusion of random weights and a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("model")
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipe = diffusers.StableDiffusionPipeline(
        unet=test_pipelines.unet(),
        vae=test_pipelines.vae(),
        scheduler=diffusers.DDIMScheduler(**test_pipelines.UNCLIPPED, steps_offset=1),
        tokenizer=tokenizer,
        text_encoder=transformers.CLIPTextModel(text),
        requires_safety_checker=False,
        **test_pipelines.without("safety_checker", "feature_extractor"),
    )
    pipe.save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.fixture(scope="module")
def clip(model):
    """A directory with a CLIP of random weights and the vocabulary of letters."""
    folder = f"{model}-clip"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(f"{model}/tokenizer")
    layers = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=1)
    torch.manual_seed(1)
    config = transformers.CLIPConfig(
        text_config=layers | words,
        vision_config=layers | dict(image_size=16, patch_size=4),
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SHORT = "--prompt house --num_steps 8".split()


# Without classifier-free guidance, which drives random weights into saturated pictures, and with
# steps enough that some end where samples can still change.
STRONG = ["--factor", "24", "--guidance_scale", "1", "--num_steps", "30"]


def scores(out):
    return [float(score) for score in re.findall(r"Vendi score ([\d.]+) of 4", out)]


@pytest.mark.slow
def test_the_example_draws_both_sets(model, tmp_path, capsys):
    example.main(["--model", model, *SHORT, "--outdir", str(tmp_path), *STRONG])
    independent, guided = scores(capsys.readouterr().out)
    assert 1 <= independent < guided <= 4
    assert (tmp_path / "pictures.png").stat().st_size > 3000


@pytest.mark.slow
def test_the_snippet_of_the_readme_draws_a_set(model):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (snippet,) = [each for each in snippets if "diffusers" in each]
    names: dict = {}
    exec(snippet.replace("some/model", str(model)), names)
    assert len(names["images"]) == 4


@pytest.mark.slow
def test_the_snippets_of_the_page_about_pipelines_draw_sets(model):
    """Those that draw sets; tests/test_pipelines.py runs the others."""
    page = (ROOT / "docs" / "pipelines.md").read_text()
    names = dict(
        pipe=diffusers.DiffusionPipeline.from_pretrained(model),
        prompt="a street in the rain",
        log_posterior=lambda x, sigma: (
            torch.stack([x.mean((2, 3, 4)), -x.mean((2, 3, 4))], 2).float().log_softmax(2)
        ),
    )
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    snippets = [each for each in snippets if "images = pipe(" in each]
    assert len(snippets) >= 3
    for snippet in snippets:
        names.pop("images", None)
        exec(snippet, names)
        assert len(names["images"]) == 4


def test_a_set_shows_the_texts_that_are_asked_for(model, clip, tmp_path, capsys):
    """By zero-shot scores of the decoded D(x), of random weights: the wiring, not pictures."""
    texts = ["--clip", clip, "--guidance_scale", "1", "--outdir", str(tmp_path)]
    example.main(["--model", model, *SHORT, *texts, "--classes", "red:1,z:3"])
    out = capsys.readouterr().out
    assert "independent  red: 4, z: 0\n" in out and "guided       red: 1, z: 3\n" in out


def test_at_no_strength_both_sets_are_one(model, tmp_path, capsys):
    flow = ["--factor", "0", "--guidance_scale", "2", "--image_size", "16"]
    example.main(["--model", model, *SHORT, "--outdir", str(tmp_path), *flow])
    independent, guided = scores(capsys.readouterr().out)
    assert independent == guided


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_another_scheduler(model, tmp_path, capsys, scheduler):
    more = ["--scheduler", scheduler, "--precision", "bfloat16"]
    example.main(["--model", model, *SHORT, "--outdir", str(tmp_path), *more])
    assert all(1 <= score <= 4 for score in scores(capsys.readouterr().out))


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--model", "nowhere/at/all"], "model: got 'nowhere/at/all'; accepted: a text-to-image"),
        (
            ["--classes", "a:4", "--clip", "nowhere/at/all"],
            "clip: got 'nowhere/at/all'; accepted: a CL",
        ),
        (["--classes", "a:2,b:3"], "classes: got 'a:2,b:3'; accepted: whole numbers of batch_size"),
        (["--classes", "all"], "classes: got 'all'; accepted: numbers of pictures, such as"),
        (["--particles", "1"], "particles: got 1; accepted: at least 2"),
        (["--prompt", ""], "prompt: got ''; accepted: --prompt with the prompt to use"),
        (["--scheduler", "PNDMScheduler"], "scheduler: got 'PNDMScheduler'; accepted: DDIM"),
        (["--scheduler", "Nonsense"], "scheduler: got 'Nonsense'; accepted: a scheduler of diff"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, flags, line, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stop:
        example.main(["--model", model, *SHORT, *flags])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and line in error


def test_the_vendi_score_counts_different_pictures():
    one = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert example.vendi(one.expand(4, -1, -1, -1)) == pytest.approx(1)
    halves = torch.zeros(2, 3, 32, 32)
    halves[0, :, :16] = 1
    halves[1, :, :, :16] = 1  # orthogonal around grey
    assert example.vendi(halves) == pytest.approx(2)
