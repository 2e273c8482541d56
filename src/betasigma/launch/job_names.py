"""Name the jobs of a sweep by what is swept: ``lr=0.001,ema.decay=0.9``.

The directory, the run on the dashboard and the table row have this name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from omegaconf import OmegaConf

LONGEST = 100
"""Most characters of a name."""


def short_keys(swept: Sequence[str], known: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    """Return the short form of each swept key.

    ``optimizer.lr`` becomes ``lr`` if no other key of the config ends in ``lr``.
    """
    ends = Counter(key.rpartition(".")[2] for key in known)
    written = {}
    for key in swept:
        plain = key.lstrip("+~")
        node, _, last = plain.partition(".")
        alone = node in set(groups) and "." not in last and ends[last] <= 1
        written[key] = last if last and alone else plain
    return written


def repeats(jobs: Sequence[Sequence[str]], written: Mapping[str, str]) -> bool:
    """Whether two jobs would have the same name."""
    names = [job_name(written, job) for job in jobs]
    return len(set(names)) < len(names)


def job_name(
    written: Mapping[str, str], overrides: Sequence[str], number: int | None = None
) -> str:
    """Name of a job, valid as that of a directory; with its ``number`` where the swept values do
    not identify it.
    """
    values = dict(override.split("=", 1) for override in overrides if "=" in override)
    parts = [f"{short}={_safe(values[key])}" for key, short in written.items() if key in values]
    if number is not None:
        parts.append(f"job={number}")
    name = re.sub(r"[^\w.,=+-]+", "-", ",".join(parts))
    if len(name) <= LONGEST:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{mark}"


def subdirectory(written: Mapping[str, str], numbered: bool) -> str:
    """Return the interpolation for ``hydra.sweep.subdir`` that names every job."""
    keys = ",".join(f"{key}:{short}" for key, short in written.items())
    number = "${hydra.job.num}" if numbered else "null"
    return f"${{job_name:{{{keys}}},${{hydra.overrides.task}},{number}}}"


def _safe(value: str) -> str:
    """Shorten a value: no quotes, brackets or folders of a path, four digits of a long number."""
    plain = re.sub(r"[\s'\"\[\]{}()]", "", value).rstrip("/").rpartition("/")[2]
    plain = plain.replace(",", "-")
    if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", plain):
        return f"{float(plain):.4g}"
    return plain


# when this module is imported: a job in another process composes its config as soon as its
# callbacks are read, which imports launch.preflight and so this
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
