"""Find the config tree: inside an installed package, or at the top of a clone."""

from __future__ import annotations

from pathlib import Path

from betasigma.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def conf_directory() -> Path:
    """Directory of the config tree (``train.yaml`` and the groups).

    A wheel contains it as ``betasigma/conf``. An editable install reads ``conf`` of the clone, so
    edits there take effect.

    Raises:
        UserError: if neither exists.
    """
    installed, cloned = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
    for folder in (installed, cloned):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(
        f"betasigma's configs are missing: neither {installed} nor {cloned} has train.yaml; "
        f"install the package again"
    )
