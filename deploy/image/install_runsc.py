"""Put runsc into the image that is being built: verified by apt, not tried, as a build has no right to."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from glowplug.cli.apt_sources import debian_mirror, read_sources
from glowplug.cli.checks_tools import RUNSC
from glowplug.cli.install import RUNSC_PACKAGE, RUNSC_VERSION, private_apt


def main() -> None:
    """Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        apt = ["apt-get", *private_apt(work, debian_mirror(read_sources()))]
        subprocess.run([*apt, "update"], check=True, cwd=work)
        subprocess.run([*apt, "download", f"{RUNSC_PACKAGE}={RUNSC_VERSION}"], check=True, cwd=work)
        package = next(work.glob(f"{RUNSC_PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(work / "unpacked")], check=True)
        RUNSC.parent.mkdir(parents=True, exist_ok=True)
        (work / "unpacked" / "usr" / "bin" / "runsc").replace(RUNSC)


if __name__ == "__main__":
    main()
