# SPDX-License-Identifier: Apache-2.0
"""The page: what it says, that it is whole and alone, and how a real browser takes it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import replay
from replay.cost import calibration
from replay.report import folio_orders, page
from replay.report.compare import total
from replay.trace.frame import Trace
from replay.trace.whatif import what_if
from tests.commands.running import call
from tests.teardown.address_spaces import Piece, trace_of

pytest.importorskip("altair", reason="the extra 'html' is not installed")
pytest.importorskip("vl_convert", reason="the extra 'html' is not installed")

CAPTURES = Path(__file__).parent.parent.parent / "captures"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    done = call("report", CAPTURES / "numpy-thp.parquet", "-o", path, "--what-if", "0,3,2m")
    assert done.returncode == 0, done.stderr
    return path


def hostile() -> Trace:
    """A trace whose names are no friends of HTML."""
    trace = trace_of(
        [Piece(order=3, count=80), Piece(count=30, new_vma=True), Piece(type="file", count=9)], 9
    )
    bad = pl.lit(HOSTILE).cast(pl.Categorical)
    [space] = trace.meta.address_spaces
    space = dataclasses.replace(space, comm=HOSTILE, cmdline=HOSTILE)
    meta = dataclasses.replace(trace.meta, address_spaces=(space,), kernel_release=HOSTILE)
    frame = trace.frame.with_columns(bad.alias("vma_name"), bad.alias("comm"))
    return dataclasses.replace(trace, frame=frame, meta=meta, name=HOSTILE)


class Elements(HTMLParser):
    """Which elements a page has, which attributes name something to load, and whether tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "link", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_is_one_file_that_loads_nothing(made: Path) -> None:
    text = made.read_text()
    assert len(text) < 1_500_000
    found = elements(text)
    assert not found.seen & {"script", "iframe", "object", "embed", "form", "base"}
    assert all(link.startswith("data:") for link in found.links), found.links
    assert "url(" not in text
    assert "@import" not in text


def test_every_picture_has_a_table(made: Path) -> None:
    sections = made.read_text().split("<h2>")[1:]
    pictured = [section for section in sections if "<svg" in section]
    assert len(pictured) == 4
    assert all("<table" in section for section in pictured)


def test_says_what_was_counted(made: Path) -> None:
    trace = replay.read_trace(CAPTURES / "numpy-thp.parquet")
    text = re.sub(r"<[^>]*>", " ", made.read_text())
    for row in total(replay.run(trace)).iter_rows(named=True):
        for counter in ("rmap_calls", "atomics", "locks"):
            assert f"{row[counter]:,}" in text
    large = total(replay.run(what_if(trace, [3]).trace, ["mainline"])).row(0, named=True)
    assert f"{large['rmap_calls']:,}" in text
    assert "not modelled" in text
    assert trace.meta.kernel_release in text


def test_changes_are_rounded_as_on_a_terminal_and_name_their_baseline(made: Path) -> None:
    assert page._count(38, 90_609).endswith(">-99.96 %</small>")
    assert page._label(38, 90_609) == "38 (-99.96 %)"
    assert page._percent(40_000, 1_000) == "+3,900"
    assert page._percent(5, 5) == "±0"
    text = made.read_text()
    assert "<h3>rmap removals, compared with baseline on the memory as captured</h3>" in text
    assert "<h2>Algorithms, compared with baseline</h2>" in text


def test_times_say_how_far_they_may_be_off() -> None:
    costs = calibration.Calibration(
        "m", "6.18", "mainline", {"ptes": 1e-9}, {}, {}, 0.104, 0.29, 40, 10, "2026-01-01"
    )
    times = page.Times({"baseline": 2e-3, "mainline": 1e-3}, "mainline", "6.18", calibration.off(costs), "")
    assert (
        "(Linux 6.18). 10 % off in the median over exits of test processes, 29 % or more for one in ten of "
        "them; real programs: 5 to 40 %, nearly always too low. Costs were"
    ) in page._time(times)
    assert "-50.0 %" in page._time(times)


def test_names_of_anybody_are_only_text() -> None:
    trace = hostile()
    results = folio_orders.by_order([trace], [[3]])
    text = page.page([trace], results, ["a trace.parquet"])
    assert "script" not in elements(text).seen
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text


def test_long_tables_are_capped() -> None:
    trace = replay.read_trace(CAPTURES / "postgresql-run.parquet")
    text = page.page([trace], folio_orders.by_order([trace], [[]]), ["captures/x.parquet"])
    processes = text.split("<h2>Processes</h2>")[1].split("<h2>")[0]
    assert processes.count("<tr>") == page.MOST_ROWS + 1
    assert f"of {len(trace.meta.address_spaces)}." in processes
    assert "replay run captures/x.parquet --per mm -o all.csv" in processes


def test_a_what_if_has_no_curves_and_says_so(tmp_path: Path) -> None:
    trace = what_if(trace_of([Piece(count=30), Piece(count=8, new_table=True)], 9), [2]).trace
    path = trace.write(tmp_path / "new.parquet")
    done = call("report", path, "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert "a what-if, not memory as captured: folios of order 2" in text
    assert "<h2>What if" not in text


# ------------------------------------------------------------------ the map


# ------------------------------------------------------------------ a browser


@pytest.fixture(scope="module")
def browser() -> str:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    return CHROMIUM


def browse(browser: str, path: Path, tmp_path: Path, *options: str) -> str:
    """Open a page headless, in a profile of its own: what it logs."""
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--enable-logging=stderr"),
        *options,
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("which", ["made", "hostile"])
def test_a_browser_loads_nothing_and_has_no_complaint(
    browser: str, made: Path, tmp_path: Path, which: str
) -> None:
    path = made
    if which == "hostile":
        trace = hostile()
        path = tmp_path / "hostile.html"
        path.write_text(page.page([trace], folio_orders.by_order([trace], [[3]]), ["x"]))
    shot = tmp_path / "page.png"
    said, asked = requests(browser, path, tmp_path, f"--screenshot={shot}")
    assert "CONSOLE" not in said, said
    assert shot.stat().st_size > 20_000
    assert asked == set()


def test_a_request_would_be_seen(browser: str, tmp_path: Path) -> None:
    path, shot = tmp_path / "loads.html", f"--screenshot={tmp_path / 'x.png'}"
    picture = '<img src="http://127.0.0.1:9/x.png">'
    path.write_text(f"<!doctype html>{picture}")
    _, asked = requests(browser, path, tmp_path, shot)
    assert asked == {"http://127.0.0.1:9/x.png"}
    policy = f'<meta http-equiv="Content-Security-Policy" content="{page.POLICY}">'
    path.write_text(f"<!doctype html>{policy}{picture}")
    said, asked = requests(browser, path, tmp_path, shot)
    assert asked == set()
    assert "CONSOLE" in said


def requests(browser: str, path: Path, tmp_path: Path, *options: str) -> tuple[str, set[str]]:
    """What the browser logs when it opens a page, and what the page asks for over the network.

    What the browser asks for on its own has no origin.
    """
    log = tmp_path / "net.json"
    said = browse(browser, path, tmp_path, f"--log-net-log={log}", *options)
    params = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    of_page = [param for param in params if param.get("initiator", "not an origin") != "not an origin"]
    return said, {param["url"] for param in of_page if param.get("url", "").startswith("http")}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_screenshots(browser: str, made: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Light paper and dark paper at both widths; the text stands out from it."""
    shot = tmp_path / "page.png"
    options = ["--force-dark-mode"] if dark else []
    browse(browser, made, tmp_path, f"--window-size={width},900", f"--screenshot={shot}", *options)
    image = colours(shot)
    assert image.shape[1] == width
    paper = np.median(image.reshape(-1, 3), axis=0)
    assert (paper < 40).all() if dark else (paper > 240).all()
    contrast = np.abs(image.mean(axis=2) - paper.mean())
    assert contrast.max() > 180
    # nothing reaches the edges: no part is wider than the page
    assert contrast[:, :6].max() < 30
    assert contrast[:, -6:].max() < 30


def colours(path: Path) -> np.ndarray:
    """A PNG as Chromium writes it (8 bits, RGB or RGBA), decoded: shape (height, width, 3)."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    channels = {2: 3, 6: 4}[data[25]]
    packed, place = b"", 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + size]
        place += size + 12
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width * channels + 1)
    image = np.zeros((height, width * channels), np.uint8)
    before = np.zeros(width * channels, np.uint8)
    for number, row in enumerate(lines):
        before = image[number] = unfiltered(int(row[0]), row[1:], before, channels)
    return image.reshape(height, width, channels)[:, :, :3].astype(np.int64)


def unfiltered(kind: int, row: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """One line of a PNG (RFC 2083, section 6)."""
    if kind == 0:
        return row
    if kind == 2:
        return row + above
    if kind == 1:
        return np.cumsum(row.reshape(-1, step), axis=0, dtype=np.uint8).ravel()
    done = bytearray(len(row))
    for n, value in enumerate(row.tolist()):
        left = done[n - step] if n >= step else 0
        up = int(above[n])
        corner = int(above[n - step]) if n >= step else 0
        guess = left + up - corner
        near = min((left, up, corner), key=lambda one: abs(guess - one))
        done[n] = (value + ((left + up) // 2 if kind == 3 else near)) & 255
    return np.frombuffer(bytes(done), np.uint8)
