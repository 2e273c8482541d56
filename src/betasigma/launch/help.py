"""What ``--help`` prints around the config: the groups to choose from and commands to start with.

Hydra's own ``--help`` composes the config tree once for each of its groups, which takes twice as
long as everything else; here the config is composed once and the groups are read off the folders.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from betasigma.launch.search_path import trees

HEADER = "betasigma: DDPM and NCSN on one footing."

FOOTER = """\
Any key above can be set as key=value, any group by name, several values with -m:
  python train.py                                        DDPM on the embedded digits
  python train.py model=ncsn sigma.levels=10             the other family
  python train.py -m model=ddpm,ncsn seed=1,2,3          a sweep
  python train.py resume=outputs/…                       continue a run
  python train.py -m bridge=0,1,2,3,4,5,6                from NCSN to DDPM, one knob at a time:
    0 NCSN   1 data range   2 input scaling   3 noise conditioning   4 schedule   5 loss
    6 sampler, DDPM
--cfg job prints the config that would be run, --info defaults where it comes from.
"""


def opening(folder: Path, config_name: str) -> str:
    """What stands before the config.

    Args:
        folder: the config tree.
        config_name: the app's primary config, whose groups are listed.
    """
    primary = yaml.safe_load((folder / f"{config_name}.yaml").read_text(encoding="utf-8"))
    names = (next(iter(entry)) for entry in primary["defaults"] if isinstance(entry, dict))
    groups = sorted(name for name in names if not name.startswith("override "))
    listed = [f"{name}: {', '.join(choices(folder, name))}" for name in groups]
    return "\n".join([HEADER, "", "== Groups ==", *listed, "", "== Config =="])


def choices(folder: Path, group: str) -> list[str]:
    """Names of a group's files."""
    return sorted({path.stem for tree in trees(folder) for path in (tree / group).glob("*.yaml")})
