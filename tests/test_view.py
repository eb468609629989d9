"""The viewer: what its pictures hold, what it refuses, and its page in a browser."""

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys

import click.testing
import numpy as np
import PIL.Image
import pytest

import small_networks
import view
from dataset_fakes import noise, save
from dnnlib.util import UserError
from paths import ROOT
from sampling import viewer
from sampling.viewer import Look
from small_networks import make_discriminator, make_generator
from test_generate import run_ok as generate
from test_style_mixing import run as mix_styles


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    G, conditional = make_generator(), make_generator(c_dim=3)
    small_networks.save(folder / "glead.pkl", G=G, D=make_discriminator(), G_ema=G)
    small_networks.save(folder / "baseline.pkl", G=G, D=make_discriminator(decoder_res=None), G_ema=G)
    small_networks.save(folder / "classes.pkl", G_ema=conditional)
    small_networks.save(folder / "more.pkl", G_ema=make_generator(c_dim=4))
    small_networks.save(folder / "gray.pkl", G_ema=make_generator(img_channels=1))
    small_networks.save(folder / "no-g.pkl", D=make_discriminator())
    save(folder / "photo.png", noise(0, 40, 40))
    (folder / "broken.png").write_text("no picture")
    return folder


def load(files, *names, **options):
    return view.load_models(tuple(str(files / f"{name}.pkl") for name in names), options.get("label"), "cpu")


def tiles(picture):
    """The images of a picture, row by row."""
    return [picture[y + 2:y + 18, x + 2:x + 18] for y in range(0, picture.shape[0] - 2, 18)
            for x in range(0, picture.shape[1] - 2, 18)]


def assert_same(image, path):
    """Up to rounding, which the number of images made at a time may tip by one level."""
    assert np.abs(image.astype(int) - np.asarray(PIL.Image.open(path)).reshape(image.shape)).max() <= 1, path


def test_pictures_are_those_of_the_other_commands(files, tmp_path):
    plain, = load(files, "glead")
    conditional, = load(files, "classes")
    generate(tmp_path, f"--network={files}/classes.pkl", "--seeds=5-9", "--class=2", "--trunc=0.5", "--outdir=seeds")
    shown = tiles(viewer.seeds_picture(conditional, 5, 5, Look(psi=0.5, class_idx=2)))
    assert len(shown) == 8 and (shown[5] == 255).all(), "4 a row, the rest is white"
    for seed, image in zip(range(5, 10), shown):
        assert_same(image, tmp_path / f"seeds/seed{seed:04d}.png")
    mix_styles(tmp_path, f"--network={files}/glead.pkl", "--rows=1", "--cols=2", "--styles=0,3", "--outdir=mix")
    for name, image in zip(("1-1", "2-2", "1-2"), tiles(viewer.mix_picture(plain, 1, 2, [0, 3, 99], Look()))):
        assert_same(image, tmp_path / f"mix/{name}.png")
    for space in "wz":
        video = tmp_path / f"{space}.webp"
        generate(tmp_path, f"--network={files}/glead.pkl", "--seeds=1,2", f"--interpolate={space}", "--lossless",
                 "--frames-per-key=4", f"--video={video}")
        with PIL.Image.open(video) as frames:
            for index in (0, 1, 4):
                frames.seek(index)
                frame = np.asarray(frames.convert("RGB")).astype(int)
                shown, = tiles(viewer.path_picture(plain, 1, 2, index / 4, space, Look()))
                assert np.abs(shown - frame).max() <= 1, (space, index)


def test_what_d_and_g_rebuild_is_that_of_generate(files, tmp_path):
    plain, baseline = load(files, "glead", "baseline")
    generate(tmp_path, f"--network={files}/glead.pkl", f"--reconstruct={files}/photo.png", "--outdir=rec")
    picture, text = viewer.rebuilt_picture(plain, [str(files / "photo.png")])
    assert_same(picture, tmp_path / "rec/reconstructions.png")
    assert re.fullmatch(r"photo: mse [\d.]+, psnr [\d.]+ dB \(scaled to fit\)", text)
    with pytest.raises(UserError, match="broken.png"):
        viewer.rebuilt_picture(plain, [str(files / "broken.png")])
    with pytest.raises(UserError, match="baseline.pkl: to rebuild images, D needs a decoder with heads for G"):
        viewer.rebuilt_picture(baseline, [str(files / "photo.png")])


def test_labels_and_seeds(files):
    conditional, plain = load(files, "classes", "glead")
    assert viewer.count_classes([conditional, plain]) == 3 and viewer.count_classes([plain]) == 0
    chosen = load(files, "classes", label=[0, 1, 0])
    assert viewer.count_classes(chosen) == 0
    assert np.array_equal(viewer.seeds_picture(chosen[0], 0, 1, Look(class_idx=None)),
                          viewer.seeds_picture(conditional, 0, 1, Look(class_idx=1)))
    assert len(tiles(viewer.seeds_picture(plain, viewer.MAX_SEED, 4, Look()))) == 1, "no seed comes after it"
    with pytest.raises(UserError, match="^a class is a whole number from 0 to 2$"):
        viewer.seeds_picture(conditional, 0, 1, Look(class_idx=None))
    with pytest.raises(UserError, match="^a seed is a whole number from 0 to 4294967295$"):
        viewer.mix_picture(plain, 0, None, [], Look())


def test_mistakes_are_one_line(files, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.0.1")
    monkeypatch.chdir(files)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_mistakes({
            "classes.pkl is for 3x16x16, gray.pkl is for 1x16x16": ["classes", "gray"],
            "different numbers of classes don't stand side by side: classes knows 3, more knows 4": ["classes", "more"],
            "no-g.pkl: holds no G_ema": ["no-g"],
            "absent.pkl": ["absent"],
            "--label has 2 numbers, the labels of this network have 3": ["classes", "--label=0,1"],
            f"can't listen on 127.0.0.1:{port}: Address already in use; --host": ["glead", f"--port={port}"],
            "can't listen on no.such.host.invalid:0: ": ["glead", "--host=no.such.host.invalid"],
            "--device=gpu can't be used here": ["glead", "--device=gpu"],
        })


def check_mistakes(cases):
    for words, args in cases.items():
        options = [arg if arg.startswith("--") else f"--network={arg}.pkl" for arg in args]
        result = click.testing.CliRunner().invoke(view.main, ["--port=0", *options])
        assert result.exit_code == 1 and words in result.stderr, result.output
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("version, said", [(None, "not installed"), ("3.36.1", "3.36.1 is installed")])
def test_without_gradio(monkeypatch, version, said):
    def find(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    result = click.testing.CliRunner().invoke(view.main, ["--network=absent.pkl"])
    assert result.exit_code == 1 and said in result.stderr
    assert result.stderr.endswith("pip install 'gradio>=6'\n") and result.stderr.count("\n") == 1


# Notes every connection that a program asks for to another host than itself.
WATCH = """
import os, socket
connect, resolve = socket.socket.connect, socket.getaddrinfo
def note(host):
    if host not in ("127.0.0.1", "localhost", None):
        with open(os.environ["ASKED_FOR"], "a") as f:
            f.write(f"{host}\\n")
def watched(self, address):
    if self.family != socket.AF_UNIX:
        note(address[0])
    return connect(self, address)
socket.socket.connect = watched
socket.getaddrinfo = lambda host, *args, **kwargs: (note(host), resolve(host, *args, **kwargs))[1]
"""


@pytest.fixture
def page_url(files, tmp_path):
    """The viewer with two networks, of which one can rebuild images; it must ask no other host for anything."""
    pytest.importorskip("gradio", minversion="6", reason="an optional dependency: pip install 'gradio>=6'")
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "ASKED_FOR": str(tmp_path / "asked"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "view.py"), f"--network={files}/glead.pkl", f"--network={files}/classes.pkl",
               "--port=0", "--device=cpu"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewing:
        try:
            line = viewing.stdout.readline()
            assert "shows glead, classes; Ctrl-C ends it" in line, line or viewing.stderr.read()
            yield line.split()[0]
        finally:
            viewing.send_signal(2)
            rest = viewing.communicate(timeout=60)
    assert rest == ("", "\nAborted!\n") and not (tmp_path / "asked").exists()


def test_the_page_in_a_browser(files, page_url):
    """Pictures change with controls, D and G rebuild a dropped image, mistakes are said, and all comes from here."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    assert page_url.startswith("http://127.0.0.1:")
    complaints, requests = [], []
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]) as chromium:
        page = chromium.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_url)

        def await_pictures(count, other_than=()):
            """The sources of so many visible pictures, all of them new."""
            page.wait_for_function(
                "([count, old]) => { const found = [...document.querySelectorAll('.pixels img')]"
                ".filter(img => img.offsetParent && img.complete && !old.includes(img.src)); "
                "return found.length === count; }", arg=[count, list(other_than)], timeout=60_000)
            return page.eval_on_selector_all(
                ".pixels img", "images => images.filter(img => img.offsetParent).map(img => img.src)")

        before = await_pictures(2)
        page.get_by_label("Class, 0 to 2").fill("1")
        page.get_by_label("First seed").fill("3")
        page.wait_for_timeout(1000)
        shown = await_pictures(2, before)
        conditional, = load(files, "classes")
        picture = PIL.Image.open(io_of(page.request.get(shown[1])))
        assert np.array_equal(np.asarray(picture), viewer.seeds_picture(conditional, 3, 4, Look(class_idx=1)))
        for tab in ("Mix", "Interpolate"):
            page.get_by_role("tab", name=tab).click()
            await_pictures(2, before + shown)
        page.get_by_role("tab", name="Rebuild").click()
        assert "classes.pkl: holds no D" in page.get_by_label("No reconstructions").input_value()
        page.set_input_files("input[type=file]", files / "photo.png")
        await_pictures(1)
        assert page.get_by_label("Errors").input_value().startswith("photo: mse ")
        page.set_input_files("input[type=file]", files / "broken.png")
        page.get_by_text(re.compile("^broken.png can't be decoded")).wait_for(timeout=60_000)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert complaints == []
    assert requests and all(url.startswith((page_url, "data:", "blob:")) for url in requests), requests


def io_of(response):
    import io

    return io.BytesIO(response.body())
