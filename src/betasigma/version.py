"""Version of the package: its only home, which ``pyproject.toml`` reads too."""

VERSION = "0.2.0"
