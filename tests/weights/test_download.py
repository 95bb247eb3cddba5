import functools
import hashlib
import http.server
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxcnn.cache import cache_folder
from flaxcnn.errors import UserError
from flaxcnn.weights.download import fetch

CONTENT = bytes(range(256)) * 10_000
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `/wrong` another content, `/broken` half of it, `/none` nothing."""

    def __init__(self, *arguments, requests):
        self.requests = requests
        super().__init__(*arguments)

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/none":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        content = {"/wrong": CONTENT[::-1], "/broken": CONTENT[: len(CONTENT) // 2]}.get(self.path, CONTENT)
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Says nothing when a client hangs up."""


@pytest.fixture(scope="module")
def requests():
    return []


@pytest.fixture(scope="module")
def server(requests):
    with Server(("127.0.0.1", 0), functools.partial(Handler, requests=requests)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, requests):
    for name in ("http_proxy", "HTTP_PROXY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLAXCNN_CACHE", str(tmp_path / "cache"))
    requests.clear()
    return tmp_path / "cache" / "weights"


def refusal(url, name=NAME):
    with pytest.raises(UserError) as caught:
        fetch(name, url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_downloaded_once_and_kept(server, cache, requests, capsys):
    path = fetch(NAME, f"{server}/net")
    assert path == cache / NAME and path.read_bytes() == CONTENT
    assert fetch(NAME, f"{server}/net") == path
    assert requests == ["/net"]
    assert names(cache) == [NAME]
    assert capsys.readouterr() == ("", "")  # stderr is no terminal here


def test_a_file_that_was_spoiled_is_downloaded_again(server, cache, requests):
    path = fetch(NAME, f"{server}/net")
    path.write_bytes(CONTENT[:-1])
    assert fetch(NAME, f"{server}/net").read_bytes() == CONTENT
    assert requests == ["/net"] * 2


def test_a_file_with_another_hash_is_not_kept(server, cache):
    digest = hashlib.sha256(CONTENT[::-1]).hexdigest()[:8]
    message = refusal(f"{server}/wrong")
    assert message.startswith(f"{server}/wrong is not the file it is named after: its SHA-256 begins with {digest}")
    assert names(cache) == []


def test_a_spoiled_file_stays_until_there_is_a_good_one(server, cache):
    fetch(NAME, f"{server}/net").write_bytes(b"spoiled")
    refusal(f"{server}/wrong")
    assert (cache / NAME).read_bytes() == b"spoiled"


def test_a_download_that_breaks_off_leaves_nothing(server, cache):
    assert f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes" in refusal(f"{server}/broken")
    assert names(cache) == []


def test_an_interrupt_leaves_nothing(server, cache, monkeypatch):
    def interrupted(self, size):
        assert [name.endswith(".part") for name in names(cache)] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(http.client.HTTPResponse, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, f"{server}/net")
    assert names(cache) == []


def test_no_connection_is_one_line_that_says_what_to_do(server, cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/net"
        message = refusal(url)
    assert message.startswith(f"cannot download {url}: ") and "Connection refused" in message
    assert message.endswith(f"; download {NAME} in another way and give its path")
    assert "HTTP Error 404: Not Found" in refusal(f"{server}/none")
    assert names(cache) == []


def test_many_at_once_do_no_harm(server, cache):
    with ThreadPoolExecutor(6) as threads:
        paths = list(threads.map(lambda _: fetch(NAME, f"{server}/net"), range(6)))
    assert set(paths) == {cache / NAME} and (cache / NAME).read_bytes() == CONTENT
    assert names(cache) == [NAME]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    message = refusal(f"{server}/net")
    assert message.startswith(f"cannot keep {NAME} in {tmp_path / 'cache' / 'weights'}: ")
    assert message.endswith("; set FLAXCNN_CACHE to another folder")


@pytest.mark.parametrize("name", ["net.pth", "net-0123456.pth", "net-0123456789.pth", "../net-01234567.pth"])
def test_a_name_without_a_hash_is_an_error(name, server, requests):
    with pytest.raises(ValueError, match="eight hex digits"):
        fetch(name, f"{server}/net")
    assert requests == []


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_folder("weights") == tmp_path / "cache" / "weights"
    monkeypatch.setenv("FLAXCNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("weights") == tmp_path / "xdg" / "flaxcnn" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("weights") == tmp_path / "home" / ".cache" / "flaxcnn" / "weights"


def test_progress_is_shown_on_a_terminal(server, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    fetch(NAME, f"{server}/net")
    assert NAME in terminal.getvalue() and "2.6/2.6 MB" in terminal.getvalue()
