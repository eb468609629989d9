"""Downloads, and errors that tell of several mistakes."""

import gzip
import hashlib
import http.server
import os
import signal
import threading

import click
import pytest
from click.testing import CliRunner

import cli
from dnnlib import util
from dnnlib.util import UserError, atomic_write, cached_path, check_all, open_url

CONTENT = bytes(range(256)) * 100


class Handler(http.server.BaseHTTPRequestHandler):
    """What the path says: /good, /short (breaks off), /large (announced), /endless (not announced), /zipped."""

    def do_GET(self):
        kind = self.path.strip("/").partition(".")[0]
        if kind == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if kind == "zipped":
            self.send_header("Content-Encoding", "gzip")
        announced = {"good": len(CONTENT), "short": 2 * len(CONTENT), "large": 1 << 50, "odd": "9" * 5000}
        if kind in announced:
            self.send_header("Content-Length", str(announced[kind]))
        self.end_headers()
        try:
            self.wfile.write(gzip.compress(CONTENT) if kind == "zipped" else CONTENT)
            while kind == "endless":
                self.wfile.write(CONTENT)
        except ConnectionError:  # the client has had enough
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_downloads_are_kept_and_checked(server, tmp_path, capsys):
    digest = hashlib.sha256(CONTENT).hexdigest()
    for kind in ("good", "zipped"):
        url = f"{server}/{kind}.pt"
        for _ in range(2):
            with open_url(url, sha256=digest[:8]) as f:
                assert f.read() == CONTENT
        assert capsys.readouterr().err.count(f"Downloading {url}") == 1
        with pytest.raises(UserError, match="expected 00000000: delete it"):
            open_url(url, sha256="00000000")
        cached_path(url).unlink()
        with pytest.raises(UserError, match="expected 00000000: delete it"):
            open_url(url, sha256="00000000")
    assert not files(tmp_path)


@pytest.mark.parametrize("kind, message", [
    ("short", "the connection broke after|25600 bytes came, and 51200 were announced"),
    ("large", "larger than 0.0078125 GiB"),
    ("endless", "larger than 0.0078125 GiB"),
    ("missing", "the server says 404"),
])
def test_bad_downloads_leave_no_file(server, tmp_path, monkeypatch, kind, message):
    monkeypatch.setattr(util, "MAX_DOWNLOAD_BYTES", 1 << 23)
    url = f"{server}/{kind}.pt"
    with pytest.raises(UserError, match=message) as caught:
        open_url(url)
    assert str(caught.value).endswith(f"; if you have the file, put it at {cached_path(url)}")
    assert "\n" not in str(caught.value) and not files(tmp_path)


def test_an_odd_length_is_none(server):
    with open_url(f"{server}/odd.pt") as f:
        assert f.read() == CONTENT


def test_all_mistakes_are_told_together():
    def fail(*messages):
        raise UserError(*messages)

    check_all(lambda: None)
    checks = [lambda: fail("one"), lambda: None, lambda: fail("two\nlines", "three"), lambda: fail("one")]
    with pytest.raises(UserError) as caught:
        check_all(*checks)
    assert caught.value.args == ("one", "two\nlines", "three") and str(caught.value) == "one; two\nlines; three"
    command = click.command(cls=cli.Command)(lambda: check_all(*checks))
    assert CliRunner().invoke(command).stderr == (
        "Error: 3 things are missing or wrong:\n  one\n  two\\nlines\n  three\n")


def test_termination_removes_a_file_that_is_half_written(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as f:
        f.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_termination_is_left_to_a_program_that_handles_it(tmp_path):
    came = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with atomic_write(tmp_path / "a") as f:
            os.kill(os.getpid(), signal.SIGTERM)
            f.write(b"whole")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert came == [signal.SIGTERM] and (tmp_path / "a").read_bytes() == b"whole"
