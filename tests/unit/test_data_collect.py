"""Where a dataset's files are looked for, how they are fetched, and what is said otherwise."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from heliotrope.data.sources.collect import Source, cache_dir, collect
from heliotrope.data.sources.download import DownloadError, fetch
from heliotrope.data.sources.images import FASHION_MNIST, MNIST
from heliotrope.errors import DataError

NAMES = tuple(MNIST.sha256)
CONTENT = {f"{name}.gz": name.encode() * 1000 for name in NAMES}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    return tmp_path / "my cache" / "heliotrope" / "toy"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def source(mirror: Path, tmp_path: Path) -> Source:
    return Source(
        name="toy",
        sha256={n: hashlib.sha256(CONTENT[f"{n}.gz"]).hexdigest() for n in NAMES},
        mirrors=(f"{mirror.as_uri()}/",),
        remedies=("bring toy to {cache}", "install toy"),
        system_dirs=(tmp_path / "system",),
    )


@pytest.fixture
def web() -> Iterator[str]:
    """Serve `CONTENT`; under /short/ each file lacks its last half, though not in its headers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            short, _, name = self.path.rpartition("/")
            if name not in CONTENT or short not in ("", "/short"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT[name])))
            self.end_headers()
            self.wfile.write(CONTENT[name][: len(CONTENT[name]) // 2 if short else None])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def fill(folder: Path, pattern: str = "{}", names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / pattern.format(name)).write_bytes(b"x")
    return folder


def failure(source: Source, directory: Path | None = None, *, download: bool = True) -> str:
    with pytest.raises(DataError) as caught:
        collect(source, str(directory) if directory else None, download=download)
    return str(caught.value)


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_all_spellings_of_the_file_names_are_found(
    source: Source, tmp_path: Path, dotted: bool, suffix: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in NAMES:
        (folder / ((name.replace("-idx", ".idx") if dotted else name) + suffix)).touch()
    found = collect(source, str(folder), download=False)
    assert tuple(found) == NAMES
    assert {path.parent for path in found.values()} == {folder}


def test_cache_comes_before_system_and_a_partial_folder_is_passed_over(
    source: Source, cache: Path
) -> None:
    system = fill(source.system_dirs[0])
    fill(cache, names=NAMES[:2])
    assert collect(source, None, download=False)[NAMES[0]].parent == system
    fill(cache)
    assert collect(source, None, download=False)[NAMES[0]].parent == cache


def test_explicit_directory_never_falls_through(
    source: Source, cache: Path, tmp_path: Path
) -> None:
    fill(cache)
    given = fill(tmp_path / "given", names=NAMES[:3])
    message = failure(source, given)
    assert f"data.dir={given}" in message
    assert f"lacks {NAMES[3]}." in message
    assert NAMES[0] not in message
    assert "no such directory" in failure(source, tmp_path / "nowhere")
    assert "is not a directory" in failure(source, given / NAMES[0])


def test_relative_xdg_cache_home_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir("toy") == tmp_path / ".cache" / "heliotrope" / "toy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir("toy") == tmp_path / ".cache" / "heliotrope" / "toy"


def test_downloads_once_into_the_cache(source: Source, cache: Path, web: str) -> None:
    found = collect(replace(source, mirrors=(web,)), None, download=True)
    assert {path.name: path.read_bytes() for path in found.values()} == CONTENT
    assert sorted(path.name for path in cache.iterdir()) == sorted(CONTENT)
    again = collect(replace(source, mirrors=("http://127.0.0.1:1/",)), None, download=True)
    assert again == found


def test_only_what_the_cache_lacks_is_fetched(source: Source, cache: Path, mirror: Path) -> None:
    fill(cache, names=NAMES[:2])
    for name in NAMES[:2]:
        (mirror / f"{name}.gz").unlink()
    found = collect(source, None, download=True)
    assert [path.name for path in found.values()] == [
        *NAMES[:2],
        *(f"{name}.gz" for name in NAMES[2:]),
    ]


def test_wrong_checksum_is_refused_and_leaves_nothing(
    source: Source, cache: Path, mirror: Path
) -> None:
    (mirror / f"{NAMES[0]}.gz").write_bytes(b"<html>log in first</html>")
    message = failure(source)
    assert hashlib.sha256(b"<html>log in first</html>").hexdigest() in message
    assert source.sha256[NAMES[0]] in message
    assert list(cache.iterdir()) == []


def test_truncated_transfer_is_refused_and_the_next_mirror_used(
    source: Source, cache: Path, web: str
) -> None:
    broken = replace(source, mirrors=(f"{web}short/",))
    assert f"{web}short/{NAMES[0]}.gz" in failure(broken)
    assert list(cache.iterdir()) == []
    mirrors = (f"{web}missing/", f"{web}short/", web)
    found = collect(replace(source, mirrors=mirrors), None, download=True)
    assert {path.name: path.read_bytes() for path in found.values()} == CONTENT


def test_silent_server_is_given_up_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(DownloadError, match="timed out"):
            fetch({"file": "0" * 64}, [url], tmp_path / "into", timeout=0.05)
    assert list((tmp_path / "into").iterdir()) == []


def test_one_error_names_every_place_attempt_and_remedy(
    source: Source, cache: Path, web: str
) -> None:
    fill(source.system_dirs[0], names=NAMES[1:])
    message = failure(replace(source, mirrors=(f"{web}a/", f"{web}b/")))
    assert f"{cache}: no such directory" in message
    assert f"{source.system_dirs[0]}: lacks {NAMES[0]}" in message
    for mirror in "ab":
        assert f"{web}{mirror}/{NAMES[0]}.gz: HTTP Error 404" in message
    assert f"bring toy to '{cache}'\n" in message  # quoted: the path has a space
    assert "install toy\n" in message
    assert "data.dir" in message


def test_no_download_unless_allowed(source: Source, cache: Path) -> None:
    message = failure(source, download=False)
    assert "data.download=false" in message
    assert not cache.exists()


def test_unwritable_cache_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert f"{tmp_path / 'file'}/heliotrope/toy: cannot be created" in failure(source)


@pytest.mark.parametrize("real", [MNIST, FASHION_MNIST], ids=lambda source: source.name)
def test_the_real_sources_are_complete(real: Source) -> None:
    assert tuple(real.sha256) == NAMES
    assert all(len(bytes.fromhex(digest)) == 32 for digest in real.sha256.values())
    assert all(mirror.endswith("/") for mirror in real.mirrors)
    assert all("{cache}" in remedy or "install" in remedy for remedy in real.remedies)
