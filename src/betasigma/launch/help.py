"""What ``--help`` prints around the config: the groups to choose from and commands to start with.

Hydra's own ``--help`` composes the config tree once for each of its groups, which takes twice as
long as everything else; here the config is composed once and the groups are read off the search
path.
"""

from __future__ import annotations

from betasigma.launch.configs import Configs

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


def opening(configs: Configs) -> str:
    """What stands before the config.

    Args:
        configs: of the app, whose groups are listed.
    """
    listed = [f"{name}: {', '.join(configs.choices(name))}" for name in configs.groups()]
    return "\n".join([HEADER, "", "== Groups ==", *listed, "", "== Config =="])
