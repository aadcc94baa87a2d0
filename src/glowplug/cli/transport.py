"""The way to one control plane, whose failures are told to who sits at a terminal."""

from __future__ import annotations

import json

import httpx

from glowplug.kernel.http_client import HttpClient
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, Unavailable


def open_transport(url: str, token: str | None, timeout_s: float) -> HttpClient:
    """Its owner closes it. Raises InvalidInput."""
    try:
        return HttpClient(url, _Words(url), timeout_s=timeout_s, headers=bearer(token))
    except InvalidInput as error:
        raise InvalidInput(
            f"{url!r} is not the address of a control plane, or the token is not one.",
            remedy="Write the address as http://HOST:PORT (--url, GLOWPLUG_URL), the token as one word.",
        ) from error


def bearer(token: str | None) -> dict[str, str]:
    """What identifies us: the header that bears the token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


class _Words:
    """With what to look at."""

    def __init__(self, url: str) -> None:
        self._url = url

    def no_answer(self, error: httpx.HTTPError) -> GlowplugError:
        """Nobody is there, or slow, or gone in the middle."""
        match error:
            case httpx.ConnectError():
                return Unavailable(
                    f"Nothing answers at {self._url}.",
                    remedy="Start Glowplug with `glowplug up`, or correct --url or GLOWPLUG_URL.",
                    reason=str(error),
                )
            case httpx.TimeoutException():
                return DeadlineExceeded(
                    f"{self._url} did not answer in time.",
                    remedy="Look at control.log and agent.log in the state directory's logs folder.",
                    stage="answer",
                )
            case _:
                return Unavailable(
                    f"The connection to {self._url} broke.",
                    remedy="Try again; the control plane may be restarting.",
                    reason=str(error),
                )

    def refused(self, answer: httpx.Response) -> GlowplugError:
        """The control plane's own error, or whatever else answers there."""
        try:
            data = json.loads(answer.content)
        except ValueError:
            data = None
        if isinstance(data, dict) and "code" in data and "message" in data:
            return GlowplugError.from_dict(data)
        return GlowplugError(
            f"{self._url} answered {answer.status_code} {answer.reason_phrase} to "
            f"{answer.request.method} {answer.request.url.path}.",
            remedy="Is this a Glowplug of the same version? Check --url; `glowplug status` tells.",
        )
