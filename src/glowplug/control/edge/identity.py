"""What a router shows to the gateways of other nodes: a certificate that control gives it for some hours."""

from __future__ import annotations

import logging
import ssl

from glowplug.identity.contexts import load_router_certificate, router_context
from glowplug.identity.membership import accept_router_certificate
from glowplug.types.cluster import CertificateAnswer
from glowplug.types.paths import IdentityDir

log = logging.getLogger(__name__)


class RouterIdentity:
    """``context`` is for connecting to gateways, from the first certificate on."""

    def __init__(self, files: IdentityDir) -> None:
        self.context: ssl.SSLContext | None = None
        self._files = files

    def accept(self, answer: CertificateAnswer) -> None:
        """Use it from the next connection on. Raises Unauthorized unless it is ours; SystemUnfit, OSError."""
        accept_router_certificate(self._files, answer)
        if self.context is None:
            self.context = router_context(self._files)
        else:
            load_router_certificate(self.context, self._files)
        log.info("this router has a new certificate")
