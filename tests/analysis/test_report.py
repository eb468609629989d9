"""Run reports: what the page says, that it is accessible and complete in itself, and that nothing in files is code."""

import html.parser
import json
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import small_networks
import train
from analysis import report
from dnnlib.util import UserError
from paths import ROOT
from small_networks import make_discriminator, make_generator
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig, to_legacy_kwargs
from training.runs.resume import locked

HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_run(path, *, gamma=1.0, ticks=3, snapshots=2, name="fid50k_full", notes="Warning: low disk"):
    """A run directory on CIFAR-10, of noise; 1 kimg per tick."""
    path.mkdir()
    config = resolve(Options(gamma=gamma, kimg=10), DatasetConfig(path="cifar10.zip", resolution=32), device="cpu")
    options = {**to_legacy_kwargs(config), "environment": {"torch": "2.99"}}
    (path / "training_options.json").write_text(json.dumps(options))
    (path / "log.txt").write_text(f"Training\n{notes}\n")
    for kimg in range(ticks):
        add_tick(path, kimg, name)
    for kimg in range(snapshots):
        for kind in ("fakes", "reconstructions"):
            img = np.random.RandomState(kimg).randint(0, 255, [128, 128, 3], dtype=np.uint8)
            PIL.Image.fromarray(img).save(path / f"{kind}{kimg:06d}.png")
    (path / "training-state-000002000.pt").touch()
    return path


def add_tick(path, kimg, name="fid50k_full"):
    values = {"Progress/kimg": kimg, "Timing/total_sec": 60 * kimg, "Loss/scores/real": 1 / (kimg + 1),
              "Loss/scores/fake": float("nan") if kimg == 1 else -0.5, "Loss/other": 7, f"Metrics/{name}": 50 - kimg}
    with open(path / "stats.jsonl", "a") as f:
        f.write(json.dumps({key: dict(num=1, mean=value, std=0) for key, value in values.items()}) + "\n")


class Page(html.parser.HTMLParser):
    """Elements as (tag, attributes), scripts, and text outside of scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self.text, self._within = [], [], "", ""
        self.feed(path.read_text())
        self.data = json.loads(self.scripts[1])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._within = ""
        self.text += " "

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within != "style":
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def write(tmp_path, *runs, **options):
    report.write_report(runs, tmp_path / "report.html", **options)
    return Page(tmp_path / "report.html")


def test_two_runs_side_by_side(tmp_path):
    (tmp_path / "runs").mkdir()
    page = write(tmp_path, make_run(tmp_path / "runs/a"), make_run(tmp_path / "runs/b", gamma=2.5))
    for words in ("runs/a", "stopped", "2 kimg of 10", "time left", "about 8m 00s", "Departs from the paper in", "2.99",
                  "Warning: low disk", f"python train.py --resume={tmp_path}/runs/a", "measured as published",
                  "Published for CIFAR-10", "2.15 +-0.02", "loss.r1_gamma"):
        assert words in page.text, words
    differing = page.text.partition("Options that differ")[2].partition("All options")[0].split()
    assert differing[-3:] == ["loss.r1_gamma", "1.0", "2.5"]
    titles = [chart["title"] for chart in page.data["charts"]]
    assert titles == ["fid50k_full", "D's realness scores", "Learning rates", "Loss/other"]
    (real, fake, *_), rates = (page.data["charts"][i]["lines"] for i in (1, 2))
    assert (real["kimg"], real["values"]) == ([0, 1, 2], [1, 0.5, 0.33333]) and real["colour"] == fake["colour"] == 0
    assert fake["kimg"] == [0, 2] and real["dash"] != fake["dash"] and len(rates) == 4
    assert page.data["slides"]["kimg"] == [0, 1] and len(page.data["slides"]["pictures"]) == 4


def test_the_page_is_accessible_and_complete_in_itself(tmp_path):
    page = write(tmp_path, make_run(tmp_path / "a"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) and page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1
    used = [attrs[key] for _, attrs in page.elements for key in ("aria-labelledby", "for") if key in attrs]
    used += [attrs["href"].removeprefix("#") for attrs in page.all("a")]
    assert len(used) > 10 and set(used) <= set(ids)
    assert all(attrs["alt"] for attrs in page.all("img")) and len(page.all("table")) == len(page.all("caption")) >= 5
    assert {attrs["scope"] for attrs in page.all("th")} == {"col", "row"}
    assert {attrs["for"] for attrs in page.all("label")} == {
        attrs["id"] for attrs in page.all("input") if attrs["type"] == "range"}
    assert all(attrs["src"].startswith("data:image/webp;base64,") for attrs in page.all("img"))
    assert not page.all("link") and not any("src" in attrs for attrs in page.all("script"))
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; script-src 'nonce-")


def test_what_files_hold_is_text(tmp_path):
    run = make_run(tmp_path / HOSTILE.replace("/", "_"), name=HOSTILE, notes=f"Warning: {HOSTILE}")
    options = json.loads((run / "training_options.json").read_text())
    options["config"] = {HOSTILE: HOSTILE, "method": HOSTILE}
    options["environment"] = {"gpu": HOSTILE}
    (run / "training_options.json").write_text(json.dumps(options))
    page = write(tmp_path, run)
    assert len(page.scripts) == 3 and len(page.all("img")) == 2
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert page.text.count(HOSTILE) >= 6
    assert not any("<" in line["name"] for chart in page.data["charts"] for line in chart["lines"]), "markup to Plotly"


def test_what_is_missing_or_damaged_is_said(tmp_path):
    run = make_run(tmp_path / "a", ticks=0, snapshots=0)
    page = write(tmp_path, run, attention=True)
    assert f"No picture of D's attention: {run} holds no network pickles" in page.text
    five = make_discriminator(img_channels=5)   # as with random bits beside the image
    small_networks.save(run / "network-snapshot-000001.pkl", D=five, G_ema=make_generator())
    assert "D takes 5 channels, and images have 3" in write(tmp_path, run, attention=True).text
    small_networks.save(run / "network-snapshot-000002.pkl", D=make_discriminator(), G_ema=make_generator())
    text = write(tmp_path, run, attention=True).text
    assert f"No picture of D's attention: the images that {run} was trained on: " in text
    assert "--data" not in text     # an option that report.py lacks
    for words in ("No curves", "no statistics yet", "No snapshots yet", "No scores were measured"):
        assert words in page.text, words
    (run / "stats.jsonl").write_text('{"Progress/kimg": 1}\n')
    add_tick(run, 4)
    (run / "fakes000004.png").write_text("no picture")
    (run / "training_options.json").write_text("{")
    page = write(tmp_path, run)
    for words in ("left out 1 of 2 lines", "fakes000004.png can't be shown", "training_options.json is missing"):
        assert words in page.text, words
    assert page.data["charts"][0]["lines"][0]["kimg"] == [4]
    with pytest.raises(UserError, match="is no run directory"):
        write(tmp_path, tmp_path)


def test_a_hundred_snapshots_take_less_than_15_mb(tmp_path, monkeypatch):
    """The worst pictures are noise; 100 of them, twice, beside what there is without pictures."""
    run = make_run(tmp_path / "a", snapshots=3)
    noise = np.random.RandomState(0).randint(0, 255, [512, 512, 3], dtype=np.uint8)
    PIL.Image.fromarray(noise).save(run / "fakes000001.png")
    monkeypatch.setattr(report, "_MAX_SNAPSHOTS", 2)
    page = write(tmp_path, run)
    assert "2 of 3 pictures of fakes are shown" in page.text and page.data["slides"]["kimg"] == [0, 2]
    picture = len(report._encode(run / "fakes000001.png", 32))
    assert picture < report._MAX_PICTURE_BYTES * 1.34 + 30
    assert (tmp_path / "report.html").stat().st_size + 200 * picture < 15e6


def test_a_report_that_fails_does_not_lose_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda *args, **options: 1 / 0)
    train.write_report("runs/a")
    assert capsys.readouterr().err == (
        "Warning: no runs/a/report.html: division by zero; report.py runs/a writes it\n")


def test_watching_ends_with_the_run(tmp_path):
    run = make_run(tmp_path / "a")
    command = [sys.executable, str(ROOT / "report.py"), str(run), "--watch", "--every=0.3"]
    with locked(str(run)):
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert "report.html: written at" in watching.stdout.readline()
        assert "training" in Page(run / "report.html").text
        add_tick(run, 3)
    *_, last = watching.communicate(timeout=60)[0].splitlines()
    assert watching.returncode == 0 and last == f"{run}/report.html"
    page = Page(run / "report.html")
    assert page.data["charts"][0]["lines"][0]["kimg"] == [0, 1, 2, 3] and "stopped" in page.text


def test_the_page_in_a_browser(tmp_path):
    """Charts are drawn, the slider moves the pictures, the theme changes; no error, and nothing is asked for."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    (tmp_path / "runs").mkdir()
    report.write_report([make_run(tmp_path / "runs/a"), make_run(tmp_path / f"runs/{HOSTILE.replace('/', '_')}")],
                        tmp_path / "report.html")
    complaints, requests = [], []
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]) as chromium:
        page = chromium.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector(".scatterlayer .trace")
        drawn = page.eval_on_selector_all(".chart", "charts => charts.map(c => c.querySelectorAll('.trace').length)")
        assert drawn == [2, 4, 4, 2]
        sources = "() => [...document.querySelectorAll('img.snapshot')].map(img => img.src)"
        before = page.evaluate(sources)
        page.focus("#snapshot")
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#position") == "0 kimg" and set(page.evaluate(sources)).isdisjoint(before)
        assert page.get_attribute("img.snapshot", "alt").endswith("at 0 kimg")
        colour = "() => getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(colour)
        page.click("#theme")
        assert page.evaluate(colour) == "rgb(255, 255, 255)" != dark
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert complaints == [] and [url for url in requests if not url.startswith("data:")] == [
        (tmp_path / "report.html").as_uri()]
