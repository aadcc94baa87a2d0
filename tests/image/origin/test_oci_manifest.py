from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.origin.oci_images import CONFIG, FOREIGN_LAYER, GZIP_LAYER

from glowplug.image.origin.oci_config import OciConfig
from glowplug.image.origin.oci_manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    choose,
    parse_document,
)
from glowplug.image.origin.oci_platform import Platform
from glowplug.types.errors import InvalidInput

ZERO = "sha256:" + "0" * 64
DESCRIPTOR = {"mediaType": GZIP_LAYER, "digest": ZERO, "size": 5}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": CONFIG, "digest": ZERO, "size": 7},
    "layers": [DESCRIPTOR, {**DESCRIPTOR, "mediaType": FOREIGN_LAYER, "urls": ["https://a/b"]}],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "manifests": [{**DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}],
}
LAYERS = {"diff_ids": [ZERO]}
SCHEMA_1 = {"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": ZERO}]}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.just(ZERO),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(MANIFEST)), inner),
    max_leaves=12,
)


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def test_documents_say_by_themselves_what_they_are() -> None:
    manifest = parse_document(encoded(MANIFEST))
    assert isinstance(manifest, Manifest)
    assert [layer.is_foreign for layer in manifest.layers] == [False, True]
    index = parse_document(encoded(INDEX))
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform("linux", "arm", "v7")


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_what_it_came_as_and_what_it_says_must_agree(kind: str) -> None:
    parse_document(encoded({**MANIFEST, "mediaType": kind}), kind)
    parse_document(encoded(MANIFEST), kind)
    parse_document(encoded(MANIFEST), "application/json")
    for document, came_as in (
        ({**MANIFEST, "mediaType": OCI_INDEX}, kind),
        ({**MANIFEST, "mediaType": kind}, DOCKER_INDEX),
        ({**INDEX, "mediaType": kind}, ""),
        (INDEX, kind),
    ):
        with pytest.raises(InvalidInput, match="it came as"):
            parse_document(encoded(document), came_as)


def test_a_document_that_is_two_things_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at once"):
        parse_document(encoded({**MANIFEST, **INDEX}))


@pytest.mark.parametrize(
    ("document", "came_as"),
    [
        (SCHEMA_1, ""),
        (SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+json", **MANIFEST}, ""),
    ],
)
def test_the_format_of_before_2016_is_named(document: object, came_as: str) -> None:
    with pytest.raises(InvalidInput, match="schema 1"):
        parse_document(encoded(document), came_as)


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 3},
        {"config": None},
        {"config": {**DESCRIPTOR, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {"layers": [{**DESCRIPTOR, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}]},
        {"layers": [{**DESCRIPTOR, "mediaType": ""}]},
        {"layers": [{**DESCRIPTOR, "size": -1}]},
        {"layers": [{**DESCRIPTOR, "size": "5"}]},
        {"layers": [{**DESCRIPTOR, "size": 5.5}]},
        {"layers": [{**DESCRIPTOR, "size": 1 << 70}]},
        {"layers": [{**DESCRIPTOR, "digest": "x" * 1000}]},
        {"layers": [{**DESCRIPTOR, "urls": ["u"] * 101}]},
        {"layers": [DESCRIPTOR] * 1001},
        {"layers": None},
    ],
)
def test_a_manifest_with_a_part_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        parse_document(encoded({**MANIFEST, **change}))


def test_a_document_that_is_too_long_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="longer"):
        parse_document(b" " * MAX_DOCUMENT_BYTES + encoded(MANIFEST))


@given(st.dictionaries(st.sampled_from([*MANIFEST, *INDEX, "mediaType", "fsLayers"]), json_values))
def test_no_document_ends_in_anything_but_our_own_error(document: dict[str, object]) -> None:
    for parse in (parse_document, OciConfig.parse):
        with contextlib.suppress(InvalidInput):
            parse(encoded(document))


def test_mutations_of_good_documents_end_in_nothing_but_our_own_error() -> None:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"]},
        "rootfs": {"diff_ids": [ZERO]},
    }
    generator = random.Random(11)
    for good in (encoded(MANIFEST), encoded(INDEX), encoded(config)):
        for _round in range(2000):
            bad = bytearray(good)
            for _change in range(generator.randint(1, 4)):
                place = generator.randrange(len(bad))
                bad[place : place + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
            with contextlib.suppress(InvalidInput):
                document = parse_document(bytes(bad))
                if isinstance(document, Index):
                    assert choose(document.manifests, Platform("linux", "arm", "v7")).digest
            with contextlib.suppress(InvalidInput):
                parsed = OciConfig.parse(bytes(bad))
                assert parsed.image_config()
                assert parsed.diff_ids is not None


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm/v7", ["linux/arm"], 0),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/arm/v7", ["linux/arm/vx", "linux/arm/v99999999999"], 0),
    ],
)
def test_the_closest_platform_that_runs_here_is_chosen(
    wanted: str, offered: list[str], expected: int | None
) -> None:
    def descriptor(text: str) -> Descriptor:
        return Descriptor.model_validate({**DESCRIPTOR, "platform": platform_of(text)})

    candidates = [descriptor(text) for text in offered]
    if expected is None:
        with pytest.raises(InvalidInput, match="has no version for"):
            choose(candidates, Platform.parse(wanted))
    else:
        assert choose(candidates, Platform.parse(wanted)) is candidates[expected]


def platform_of(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "Linux/amd64", "linux/amd64\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a platform"):
        Platform.parse(text)
