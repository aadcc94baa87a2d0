"""One copy in memory of what a graduated image has read, although its packs are read through the page cache.

Reading packs that way is what makes a cold start fast: files that are started together lie together, and the
read-ahead of the SSD's filesystem brings in the next ones. But then the page cache has everything twice, in
the pack and in the mounted image. The pack's copy has done its work once a start is over, and goes first.
"""

from __future__ import annotations

import os
from contextlib import suppress

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.graduate import PinnedPacks, read_graduated


def drop_pack_cache(folder: IndexFolder, ssd: PinnedPacks) -> None:
    """Forget what the page cache holds of the image's packs; what it holds of the mounted image stays.

    Call it when a start from a graduated mount has become ready. Costs about 0.1 s per cached GB at most, and
    nothing that anybody could read is lost: whoever reads from a pack again reads from the SSD. Content that
    is not on the SSD yet stays cached. An image that has not graduated has no such packs.
    """
    graduated = read_graduated(folder)
    for pack in graduated.record.packs if graduated else ():
        with suppress(OSError):  # it was removed since: then nothing of it is cached
            descriptor = os.open(ssd.pack_path(pack), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
