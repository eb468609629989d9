"""Model cards: what is known, and what is not."""

import json

import pytest
import torch

from training.networks import Discriminator, Generator
from training.runs import model_card
from training.runs.model_card import ModelFile, RecordedScore

FILE = ModelFile("net.onnx", 12345, "ab" * 32)
SMALL = dict(channel_base=64, channel_max=8)


def render(networks=None, *, run=None, **options):
    G = Generator(8, 3, 16, 8, 1, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=SMALL)
    return model_card.render({"G_ema": G} if networks is None else networks, [FILE], origin="https://example.org/n.pkl",
                             run=run, difference=1e-6, **options)


def test_nothing_is_made_up():
    card = render()
    for text in ("Generative adversarial network: unknown.", "| method | unknown |", "Unknown. *(To fill in: images",
                 "Unknown: none was recorded", "lay in no run directory", "* what it was trained on",
                 "`https://example.org/n.pkl`",
                 "1x8x8", "labels: 3 numbers", "differ by 1e-06 at most", "--class=0"):
        assert text in card, text
    assert "mapping layers" in card and "| batch |" not in card


def test_how_to_sample_runs(monkeypatch):
    """The snippet for PyTorch, on a generator in the file's place."""
    G = Generator(8, 3, 16, 8, 1, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=SMALL).eval()
    card = render({"G_ema": G}, noise_mode="none")
    assert "--noise-mode=none" in card and '"c": numpy.eye(3, dtype="float32")[:1]' in card
    snippets = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    import legacy

    monkeypatch.setattr(legacy, "load_network_pkl", lambda name: {"G_ema": G} if name == "net.onnx" else None)
    names = {}
    exec(snippets[0], names)
    assert names["img"].shape == (1, 1, 8, 8)
    compile(snippets[1], "snippet", "exec")


def test_discriminators_and_pipes_are_described():
    D = Discriminator(0, 16, 3, decoder_res=8, glead_res_g=8, decoder_out_channel=12, **SMALL)
    card = render({"D": D, "augment_pipe": torch.nn.Identity()})
    assert "resnet, unconditional, decoder to 8x8, heads for G" in card
    assert "`augment_pipe`, is in the file" in card and "holds no generator" in card


@pytest.mark.parametrize("method,text", [
    ("stylegan2", "StyleGAN2 (Karras"), ("ggdr", "GGDR (Lee"), ("glead+ggdr", '"Ours\\*"'), ("new|one", "new\\|one"),
])
def test_methods_are_named(method, text):
    assert text in render(run=model_card.Origin({"config": {"method": method}}, 7, []))
    loss = {"adversarial": "wgan-gp", "rivals": {"zcr": {"gen": 1}, "new": {}}}
    card = render(run=model_card.Origin({"config": {"method": method, "loss": loss}}, 7, []))
    assert text in card and " + wgan-gp (Gulrajani et al., NIPS 2017: lambda 10) + zcr (Zhao et al." in card


def test_run_directories(tmp_path):
    assert model_card.read_origin(tmp_path / "network-snapshot-000100.pkl") is None
    options = {"total_kimg": 200, "ada_target": 0.6, "reg_type": "ggdr"}
    (tmp_path / "training_options.json").write_text(json.dumps(options))
    entry = {"results": {"fid50k_full": 4.0}, "snapshot_pkl": "network-snapshot-000100.pkl"}
    (tmp_path / "metric-fid50k_full.jsonl").write_text("[]\n" + json.dumps(entry) + "\nnonsense\n")
    run = model_card.read_origin(tmp_path / "network-snapshot-000100.pkl")
    assert run.kimg == 100 and run.scores == [RecordedScore("fid50k_full", 4.0, "not recorded")]
    card = render(run=run)
    assert "| fid50k_full | 4 | not recorded |" in card and "no published FID" not in card
    assert "| target of adaptive augmentation | 0.6 |" in card and "StyleGAN2 with GGDR" in card
    assert model_card.read_origin(tmp_path / "other.pkl").kimg is None
    exact = model_card.read_origin(tmp_path / "network-snapshot-025000_512.pkl")
    assert "(kimg) | 25,000.512 |" in render(run=exact) and "(kimg) | 100 |" in render(run=run)
    (tmp_path / "training_options.json").write_text("{")
    card = render(run=model_card.read_origin(tmp_path / "other.pkl"))
    assert "`training_options.json` beside the source is damaged" in card


def test_names_cannot_break_the_table():
    card = render(run=model_card.Origin({"training_set_kwargs": {"path": "a|b\n<script>.zip"}}, None, []))
    assert "| name | a\\|b &lt;script>.zip |" in card


def test_what_comes_from_files_is_text():
    """No links, images, HTML, code or emphasis of other people's making."""
    evil = "![a](http://b) <b>x</b> `c` *d* _e_ ~~f~~ $g$ &lt; | \\h\u202e"
    options = {"config": {"method": evil, "preset": evil}, "random_seed": evil, "training_set_kwargs": {"path": evil}}
    run = model_card.Origin(options, None, [RecordedScore(evil, 1.0, evil)])
    file = ModelFile("a`b; rm -rf [x](y) \".onnx", 1, "ab" * 32)
    G = Generator(8, 3, 16, 8, 1, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=SMALL)
    card = model_card.render({"G_ema": G}, [file], origin=file, run=run, difference=None)
    text, snippets = card.split("## Sampling")
    safe = ("\\!\\[a\\](http\\://b) &lt;b>x&lt;/b> \\`c\\` \\*d\\* \\_e\\_ \\~\\~f\\~\\~ \\$g\\$ &amp;lt; \\| "
            "\\\\h")
    assert text.count(safe) == 6 and "\u202e" not in card and "a\\`b; rm -rf \\[x\\](y) \".onnx" in text
    left = text.replace(safe, "").replace("a\\`b; rm -rf \\[x\\](y)", "")
    assert not any(mark in left for mark in ("http", "<b>", "](", "rm -rf"))
    assert "--network='a`b; rm -rf [x](y) \".onnx' --seeds" in snippets
    assert 'load_network_pkl("a`b; rm -rf [x](y) \\".onnx")' in snippets
