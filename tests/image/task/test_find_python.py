from __future__ import annotations

import stat

import pytest

from glowplug.image.index.tree import Inode, Tree
from glowplug.image.task.importing import find_python, follow


def directory(**children: Inode) -> Inode:
    named = {name.encode(): inode for name, inode in children.items()}
    return Inode(mode=stat.S_IFDIR | 0o755, children=named)


def program(mode: int = 0o755) -> Inode:
    return Inode(mode=stat.S_IFREG | mode)


def link(target: str) -> Inode:
    return Inode(mode=stat.S_IFLNK | 0o777, target=target.encode())


PYTHON = program()
DEBIAN = Tree(
    directory(
        bin=link("usr/bin"),
        usr=directory(
            bin=directory(**{"python3": link("python3.11"), "python3.11": PYTHON, "sh": program()})
        ),
        opt=directory(venv=directory(bin=directory(python=link("/usr/bin/python3"), up=link("../../..")))),
        loop=link("loop"),
    )
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/usr/bin/python3.11", PYTHON),
        (b"/bin/python3", PYTHON),
        (b"/opt/venv/bin/python", PYTHON),
        (b"/opt/venv/bin/up/bin/python3", PYTHON),
        (b"/../../usr/./bin/python3", PYTHON),
        (b"/", DEBIAN.root),
        (b"/usr/bin/perl", None),
        (b"/usr/bin/sh/deeper", None),
        (b"/loop", None),
    ],
)
def test_links_are_followed_as_inside_a_container(path: bytes, expected: Inode | None) -> None:
    assert follow(DEBIAN, path) is expected


def test_the_first_python_of_the_search_path_is_found() -> None:
    assert find_python(DEBIAN, "/nowhere:/usr/bin:/bin") == "/usr/bin/python3"
    assert find_python(DEBIAN, "/opt/venv/bin:relative") == "/opt/venv/bin/python"


def test_what_cannot_be_run_is_no_python() -> None:
    assert find_python(Tree(directory(bin=directory(python3=program(0o644)))), "/bin") is None
    assert find_python(Tree(directory(bin=directory(python3=directory()))), "/bin") is None
