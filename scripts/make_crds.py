"""Write deploy/helm/glowplug/crds from the models in glowplug.engine.kubernetes.objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from glowplug.engine.kubernetes.crds import definitions

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "glowplug" / "crds"
HEAD = "# Made by scripts/make_crds.py from the models: change those, and run it again.\n"


def rendered(definition: dict[str, Any]) -> str:
    """The definition as its file says it."""
    return HEAD + yaml.safe_dump(definition, sort_keys=False, width=110)


def main() -> None:
    """One file each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for plural, definition in definitions().items():
        (FOLDER / f"{plural}.yaml").write_text(rendered(definition))


if __name__ == "__main__":
    main()
