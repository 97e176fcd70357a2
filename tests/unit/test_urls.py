# SPDX-License-Identifier: LGPL-2.1-or-later
"""One spelling for each URL, and globs that are not passed by with another."""

from __future__ import annotations

import time

import pytest

from bridge.urls import URLGlob, flaw, matches, normalize


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://a/b", "https://a/b"),
        ("https://a", "https://a/"),
        ("https://A.Example/B", "https://a.example/B"),
        ("https://a:443/", "https://a/"),
        ("http://a:80/", "http://a/"),
        ("http://a:0080/", "http://a/"),
        ("https://a:80/", "https://a:80/"),
        ("http://a:443/", "http://a:443/"),
        ("http://a:65535/", "http://a:65535/"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("http://[FE80::A]/x", "http://[fe80::a]/x"),
        ("http://127.0.0.1/x", "http://127.0.0.1/x"),
        ("https://a/%7Eb/%41%2d", "https://a/~b/A-"),
        ("https://a/%c3%a4%3a", "https://a/%C3%A4%3A"),
        ("https://a/b?c=%64&e=f/../g?h", "https://a/b?c=d&e=f/../g?h"),
        ("https://a?b", "https://a/?b"),
        ("https://a//b/", "https://a//b/"),
        ("https://a/b@c:d", "https://a/b@c:d"),
        ("https://a/...", "https://a/..."),
    ],
)
def test_a_url_has_one_spelling(url: str, normal: str) -> None:
    assert normalize(url) == normal
    assert normalize(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        # schemes
        "file:///etc/passwd", "ftp://a/b", "HTTP://a/b", "https:/a/b", "https:a", "//a/b", "", "a", "httpss://a/",
        " https://a/", "https://a/\n",
        # hosts
        "https://", "https:///b", "https://@a/", "https://a@b/", "https://a:b@c/", "https://a%40b/", "https://a\\b/",
        "https://-a/", "https://a./", "https://.a/", "https://a b/", "https://ä/", "https://a,b/", "https://[::1/",
        "https://[::1%25eth0]/", "https://[a]b/", "https://[x]/",
        # ports
        "https://a:/", "https://a:0/", "https://a:65536/", "https://a:999999/", "https://a:-1/", "https://a:x/",
        # paths
        "https://a/../b", "https://a/b/..", "https://a/./b", "https://a/.", "https://a/%2e%2e/b", "https://a/.%2E",
        "https://a/b%2fc", "https://a/b%2Fc", "https://a/b%5cc", "https://a/b\\c", "https://a/b#c", "https://a#b",
        "https://a/%", "https://a/%4", "https://a/%zz", "https://a/%00", "https://a/%7f", "https://a/b c", "https://a/ä",
        "https://a/<", "https://a/\"", "https://a/[b]", "https://a/{b}", "https://a/b|c", "https://a/b?%0a",
    ],
)  # fmt: skip
def test_what_servers_or_readers_could_take_for_another_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        normalize(url)


def of(glob: str, url: str) -> bool:
    assert flaw(glob) is None
    return matches([URLGlob.of("http://never/"), URLGlob.of(glob)], normalize(url))


@pytest.mark.parametrize(
    ("glob", "matched", "others"),
    [
        (
            "https://a/*",
            ["https://a/", "https://A/b/c", "https://a:443/?x", "https://a"],
            ["http://a/", "https://b/", "https://a.b/", "https://b.a/", "https://a:8443/", "https://b/https://a/"],
        ),
        (
            "https://*.example/*",
            ["https://a.example/", "https://a.b.example/c"],
            ["https://example/", "https://b/a.example/", "https://b/.example/c", "https://a.example.b/"],
        ),
        ("https://a/images/*.tar", ["https://a/images/x.tar", "https://a/images/x/y.tar"], ["https://a/x.tar"]),
        ("http://a:8000/*", ["http://a:8000/x"], ["http://a/x", "http://a:8001/x"]),
        ("https://a/b", ["https://a/b", "https://a/%62"], ["https://a/b/", "https://a/B", "https://a/b?c"]),
        ("http://[[]::1]/*", ["http://[::1]/x"], ["http://[::2]/x"]),
        ("https://*/*", ["https://a/", "https://b:1/c"], ["http://a/"]),
    ],
)
def test_a_glob_is_held_against_what_it_names(glob: str, matched: list[str], others: list[str]) -> None:
    for url in matched:
        assert of(glob, url), url
    for url in others:
        assert not of(glob, url), url


@pytest.mark.parametrize(
    ("glob", "what"),
    [
        ("*", "a host and a path"),
        ("https://a", "a host and a path"),
        ("https:///b", "a host and a path"),
        ("ftp://a/*", "a host and a path"),
        ("http*://a/*", "a host and a path"),
        ("https://A/*", "upper case"),
        ("https://b@a/*", "a user"),
        ("https://a:443/*", "the port 443"),
        ("http://*:80/*", "the port 80"),
        ("https://a/b#*", "a fragment"),
        ("https://[2001:db8::1]/*", "[[] is the character"),
        ("http://[::1]:8000/*", "[[] is the character"),
        ("http://[!:]/*", "[[] is the character"),
    ],
)
def test_a_glob_that_could_match_nothing_or_another_host_has_a_flaw(glob: str, what: str) -> None:
    found = flaw(glob)
    assert found is not None
    assert what in found


def test_a_long_url_is_decided_quickly() -> None:
    globs = [URLGlob.of("https://" + "*a" * 8 + "/" + "*b" * 8)]
    begin = time.process_time()
    assert not matches(globs, normalize("https://" + "a" * 200 + "/" + "%62" * 600 + "c"))
    assert time.process_time() - begin < 0.5
