"""What an answer means: follow it elsewhere, try again later, or give up with words of use to somebody."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import urllib3
from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.image.command import clean
from glowplug.image.origin.http_session import MAX_URL_CHARACTERS, Interrupted, interrupted
from glowplug.image.origin.retries import read_retry_after
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unauthorized, Unavailable

READ_BYTES = 256 << 10
MAX_REDIRECTS = 5
MAX_ERROR_BYTES = 16 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_WORTH_RETRYING = (408, 429, 500, 502, 503, 504)


class _Problem(BaseModel):
    model_config = ConfigDict(extra="ignore")

    code: str = ""
    message: str = ""


class _Problems(BaseModel):
    model_config = ConfigDict(extra="ignore")

    errors: list[_Problem] = []


def followed(
    url: str, ask: Callable[[str], urllib3.BaseHTTPResponse], *, may_move: bool
) -> urllib3.BaseHTTPResponse:
    """The answer at the end of redirects; ``ask`` sends one request. Raises InvalidInput."""
    for _hop in range(MAX_REDIRECTS + 1):
        response = ask(url)
        if response.status not in _REDIRECTS:
            return response
        response.close()
        if not may_move:
            break
        url = redirected(url, response.headers.get("Location", ""))
    raise InvalidInput(
        f"{urlsplit(url).netloc} sends us elsewhere where it may not, or too often.",
        remedy="Check the address of the registry.",
    )


def redirected(url: str, location: str) -> str:
    """Where a redirect leads. Raises InvalidInput for one that is not to be followed."""
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    check_address(target)
    if url.startswith("https:") and not target.startswith("https:"):
        raise InvalidInput(
            f"{urlsplit(url).netloc} sends us on to unencrypted HTTP.", remedy="Tell who runs the registry."
        )
    return target


def check_address(url: str) -> None:
    """Raise InvalidInput unless ``url`` is an address that a blob may be fetched from."""
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.scheme not in ("http", "https") or len(url) > MAX_URL_CHARACTERS:
        raise InvalidInput(
            f"A part of the image is said to lie at {url[:100]!r}, which is no address to fetch from.",
            remedy="Only http:// and https:// are; push the image again, with all of its layers.",
        )


def failure(response: urllib3.BaseHTTPResponse, who: str, what: str, clock: Clock) -> GlowplugError:
    """The error for an answer that is not the content asked for."""
    status = response.status
    said = _words_of(response)
    if status in _WORTH_RETRYING:
        problem = Interrupted(f"{who} answers with {status}.", remedy="Try again later.", said=said)
        problem.retry_after_s = read_retry_after(response.headers.get("Retry-After", ""), clock)
        return problem
    if status in (401, 403):
        return Unauthorized(
            f"{who} does not let us read {what}.", remedy="Log in with `docker login`.", said=said
        )
    if status == 404:
        return NotFound(f"{who} does not have {what}.", remedy="Check the name and the tag.", said=said)
    return Unavailable(
        f"{who} answers with {status}.", remedy="Check that the address is that of a registry.", said=said
    )


def read_small(response: urllib3.BaseHTTPResponse, limit_bytes: int, what: str) -> bytes:
    """A whole answer. Raises InvalidInput if it is longer than ``limit_bytes``, Interrupted if it breaks."""
    data = bytearray()
    while piece := read_piece(response):
        data += piece
        if len(data) > limit_bytes:
            response.close()
            raise InvalidInput(
                f"The server's answer for {what} is longer than {limit_bytes} bytes.",
                remedy="Check that the address is that of a registry, and the name that of an image.",
            )
    return bytes(data)


def read_piece(response: urllib3.BaseHTTPResponse) -> bytes:
    """What is there of an answer, none at its end. Raises Interrupted."""
    try:
        return response.read1(READ_BYTES)
    except (urllib3.exceptions.HTTPError, OSError) as problem:
        raise interrupted(response.url or "", problem) from problem


def _words_of(response: urllib3.BaseHTTPResponse) -> str:
    try:
        problems = _Problems.model_validate_json(read_small(response, MAX_ERROR_BYTES, "an error")).errors
    except (ValidationError, InvalidInput, Interrupted):
        return ""  # a proxy's page, or nothing: the status has to do
    return "; ".join(clean(f"{problem.code}: {problem.message}".encode()) for problem in problems[:3])[:500]
