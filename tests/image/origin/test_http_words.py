"""The small languages of HTTP that we read: challenges, proxies, pauses, redirects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.origin.http_answers import redirected
from glowplug.image.origin.http_session import proxy_for
from glowplug.image.origin.retries import read_retry_after
from glowplug.image.origin.www_authenticate import Challenge, parse_challenges
from glowplug.types.clock import ManualClock
from glowplug.types.errors import InvalidInput

BEARER = Challenge("bearer", {"realm": "https://a/t?x=1,2", "service": 's "q"', "scope": "r:x:pull,push"})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([r'Bearer realm="https://a/t?x=1,2",service="s \"q\"",scope="r:x:pull,push"'], [BEARER]),
        (
            ['BEARER realm=https://a , SERVICE="s"'],
            [Challenge("bearer", {"realm": "https://a", "service": "s"})],
        ),
        (
            ['Basic realm="one", Bearer realm="two"'],
            [Challenge("basic", {"realm": "one"}), Challenge("bearer", {"realm": "two"})],
        ),
        (["Basic", "Negotiate"], [Challenge("basic"), Challenge("negotiate")]),
        (['Bearer realm="a",realm="b"'], [Challenge("bearer", {"realm": "a"})]),
        (['realm="no scheme"'], []),
        (['Bearer realm="open'], [Challenge("bearer")]),
        ([], []),
    ],
)
def test_challenges_are_read(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@given(st.lists(st.text(alphabet='Bearer =",\\ \t;é\0realm', max_size=200), max_size=4))
def test_no_challenge_is_too_strange_to_be_read(headers: list[str]) -> None:
    parse_challenges(headers)


def test_a_challenge_of_any_length_is_read_quickly() -> None:
    for unit in ('a="', "a=", '"', "\\", " ", ",", "a", 'a="\\'):
        parse_challenges([unit * 100_000])


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://a/", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://a/", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("http://a/", {"https_proxy": "http://p:1"}, ""),
        ("http://a/", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("https://x.corp/", {"https_proxy": "p", "no_proxy": "corp"}, ""),
        ("https://x.corp/", {"https_proxy": "p", "no_proxy": " .corp , b"}, ""),
        ("https://xcorp/", {"https_proxy": "p", "no_proxy": "corp"}, "http://p"),
        ("https://10.1.2.3/", {"https_proxy": "p", "NO_PROXY": "10.0.0.0/8"}, ""),
        ("https://11.1.2.3/", {"https_proxy": "p", "NO_PROXY": "10.0.0.0/8"}, "http://p"),
        ("https://a/", {"https_proxy": "p", "no_proxy": "*"}, ""),
        ("http://127.0.0.1:5000/", {"http_proxy": "p"}, ""),
        ("http://localhost/", {"http_proxy": "p"}, ""),
        ("http://[::1]:1/", {"http_proxy": "p"}, ""),
    ],
)
def test_the_environment_says_which_way_to_go(url: str, environ: dict[str, str], expected: str) -> None:
    assert proxy_for(url, environ) == expected


def test_a_proxy_of_another_kind_is_named() -> None:
    with pytest.raises(InvalidInput, match="names a socks5 proxy"):
        proxy_for("https://a/", {"all_proxy": "socks5://p:1"})


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("7", 7), ("0", 0), ("9" * 400, 999_999), ("", 0), ("-1", 0), ("soon", 0), ("1e9", 0), ("٣", 0),
     ("Thu, 01 Jan 1970 00:01:40 GMT", 40), ("Thu, 01 Jan 1970 00:00:40 GMT", 0)],
)  # fmt: skip
def test_a_pause_is_read_as_seconds_or_as_a_moment(text: str, expected_s: float) -> None:
    assert read_retry_after(text, ManualClock(60)) == expected_s


def test_redirects_keep_or_raise_security_and_never_lower_it() -> None:
    assert redirected("https://a/x/y", "../z") == "https://a/z"
    assert redirected("http://a/x", "https://b/y") == "https://b/y"
    assert redirected("https://a/x", "//b/y") == "https://b/y"
    with pytest.raises(InvalidInput, match="unencrypted"):
        redirected("https://a/x", "http://a/x")
