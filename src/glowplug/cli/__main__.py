"""``python -m glowplug.cli`` is the ``glowplug`` command."""

from glowplug.cli.main import main

if __name__ == "__main__":
    main()
