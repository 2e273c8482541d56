"""The LightningModules of the two families, and of the ground truth."""

from betasigma.modules.diffusion import DiffusionModule, MeasuredModule, Oracle


class DDPM(DiffusionModule):
    """Denoising diffusion probabilistic model (Ho et al. 2020)."""

    family = "ddpm"


class NCSN(DiffusionModule):
    """Noise conditional score network (Song & Ermon 2019)."""

    family = "ncsn"


__all__ = ["DDPM", "NCSN", "DiffusionModule", "MeasuredModule", "Oracle"]
