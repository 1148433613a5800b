# SPDX-License-Identifier: Apache-2.0
"""Algorithms of the user's own: how they are written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replay.errors import ReplayError, UsageError
from replay.teardown.algorithms import ALGORITHMS, Algorithm, Entry, PageTables, Rmap, of_kernel, of_release
from replay.teardown.variants import PARAMETERS, chosen, decoded, encoded, parse, read_file, variant, vary


def test_a_name_takes_the_parameters_after_it():
    found = parse("v2,mainline,release_batch=63,name=big,baseline")
    assert [algorithm.name for algorithm in found] == ["v2", "big", "baseline"]
    assert (found[1].release_batch, found[1].rmap) == (63, Rmap.RUN)
    assert found[0] is ALGORITHMS["v2"]


def test_without_a_name_it_is_called_what_was_written():
    assert parse("mainline, release_batch=63")[0].name == "mainline,release_batch=63"


def test_the_series_on_top_of_mainline():
    [found] = parse("mainline,rmap=range,entry=range,name=series-on-top")
    assert (found.entry, found.rmap, found.delayed_rmap) == (Entry.RANGE, Rmap.RANGE, False)
    assert (found.drains_lru, found.page_tables) == (False, PageTables.RCU)


def test_a_release_function_brings_its_batch_and_its_locks():
    [found] = parse("mainline,release=release-pages")
    assert (found.release_batch, found.relocks) == (0, True)
    [found] = parse("mainline,release=release-pages,release_batch=9")
    assert (found.release_batch, found.relocks) == (9, True)


WRONG = {
    "v9": "unknown algorithm 'v9'",
    "mainline,speed=9": "unknown parameter 'speed'",
    "bundle=9": "names? no algorithm|changes no algorithm",
    "mainline,bundle=0": "from 1 to 65,536",
    "mainline,bundle=many": "from 1 to 65,536",
    "mainline,bundle=-1": "from 1 to 65,536",
    "mainline,relocks=1": "true or false",
    "mainline,entry=pages": "one of page, page-run, range",
    "mainline,rmap=range": "add entry=range",
    "mainline,entry=range": "delayed_rmap=false",
    "v2,delayed_rmap=true": "leave delayed_rmap out",
    "mainline,batch_slots=1": "two slots",
    "mainline,batch_pages=3": "powers of two",
    "mainline,batch_pages=2,batch_slots=9": "set one of them",
    "mainline,lock_batch=9": "relocks=true",
    "mainline,bundle=9,bundle=10": "twice",
    "mainline,bundle=9,name=v2": "choose another name",
}


@pytest.mark.parametrize(("text", "why"), WRONG.items())
def test_what_is_refused(text: str, why: str):
    with pytest.raises(UsageError, match=why) as caught:
        chosen(text)
    assert "\n" not in str(caught.value)


def test_a_file_of_definitions(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('[a]\nbase = "mainline"\nrelease_batch = 63\n[b]\nbase = "a"\nthps_queued = false\n')
    a, b = read_file(path)
    assert (a.name, a.release_batch) == ("a", 63)
    assert (b.name, b.release_batch, b.thps_queued) == ("b", 63, False)
    assert [one.name for one in chosen([str(path), "a,bundle=9,name=c"])] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a\n", "is no TOML"),
        ("", "defines no algorithm"),
        ("a = 1\n", "outside a table"),
        ("[a]\nbundle = 9\n", "needs base"),
        ('[a]\nbase = "v9"\n', r"\[a\]: unknown algorithm"),
        ('[a]\nbase = "v2"\nbundle = true\n', "bundle=True: it must be a whole number"),
        ('[a]\nbase = "v2"\nbundle = 1.5\n', "whole number"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, why: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ReplayError, match=why) as caught:
        read_file(path)
    assert caught.value.status == 1


def test_one_algorithm_for_each_value():
    found = vary(chosen(["baseline", "mainline"]), ["bundle=8,16", "max_gather_entries=2000,10000"])
    assert len(found) == 8
    assert {(one.bundle, one.max_gather_entries) for one in found} == {
        (bundle, most) for bundle in (8, 16) for most in (2000, 10000)
    }
    for text in ("bundle", "bundle=", "=9"):
        with pytest.raises(UsageError):
            vary(chosen("mainline"), [text])


def test_two_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two algorithms are called 'x'"):
        chosen(["mainline,bundle=9,name=x", "mainline,bundle=10,name=x"])
    assert len(chosen(["v2", "v2"])) == 1


@pytest.mark.parametrize(
    "algorithm", [*ALGORITHMS.values(), *parse("mainline,bundle=9")], ids=lambda a: a.name
)
def test_it_survives_json(algorithm: Algorithm):
    assert decoded(json.loads(json.dumps(encoded(algorithm)))) == algorithm


def test_every_parameter_is_a_field_and_has_a_meaning():
    base = ALGORITHMS["mainline"]
    for name, parameter in PARAMETERS.items():
        assert hasattr(base, name) and parameter.meaning and parameter.constant
    words = {"entry": "page", "rmap": "pte", "release": "folios-put"}
    assert variant(base, words).entry is Entry.PAGE


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("7.3.4+deb13-cloud-amd64", "mainline"),
        ("6.18.44-fc-v657", "mainline"),
        ("6.12.9", "v6.12"),
        ("6.8.12-amd64", "baseline"),
        ("5.10.0", "v6.1"),
    ],
)
def test_the_algorithm_of_a_release(release: str, name: str):
    found = of_release(release)
    assert found is not None and found.name == name


def test_a_kernel_without_a_release_has_no_algorithm():
    assert of_release("unknown") is None
    assert of_kernel([]).name == "v6.1"
