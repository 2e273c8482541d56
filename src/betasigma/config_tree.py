"""Where the config tree is: inside an installed package, at the top of a clone."""

from __future__ import annotations

from pathlib import Path

from betasigma.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def conf_directory() -> Path:
    """Directory of the config tree (``train.yaml`` and the groups).

    A wheel carries it as ``betasigma/conf``; an editable install reads the clone's own ``conf``, so
    that an edit there takes effect.

    Raises:
        UserError: where neither is there.
    """
    installed, cloned = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
    for folder in (installed, cloned):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(
        f"betasigma's configs are missing: neither {installed} nor {cloned} has train.yaml; "
        f"install the package again"
    )
