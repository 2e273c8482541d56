"""Metrics on features, and what they are called.

The arithmetic is torch-fidelity's, on features that are already there, with its defaults:

- **KID** (Bińkowski et al. 2018): unbiased squared MMD with the kernel (xᵀy/dim + 1)³, mean and
  standard deviation over 100 random subsets of up to 1,000;
- **Inception score** (Salimans et al. 2016): exp E KL(p(y|x) ‖ p(y)), mean and standard deviation
  over 10 splits;
- **precision and recall** (Kynkäänniemi et al. 2019): share of samples inside the data's manifold
  and the reverse, a manifold being the union of balls that reach each point's third neighbour.

A metric's name says what was measured: ``fid`` is only ever the Fréchet distance on Inception's
pool3; every other feature-based metric carries its extractor's name.
"""

from __future__ import annotations

from torch import Tensor

KID_SUBSET = 1000


def metric_name(metric: str, extractor: str) -> str:
    """Name under which a feature-based metric is reported."""
    return "fid" if (metric, extractor) == ("fd", "inception") else f"{metric}_{extractor}"


def kid(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Kernel distance between features ``(n, dim)`` and ``(m, dim)``: mean and standard deviation
    over subsets of min(1000, n, m)."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(KID_SUBSET, len(samples), len(reference))
    found = kid_features_to_metric(samples, reference, kid_subset_size=size, verbose=False)
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Score of class logits ``(n, classes)``: mean and standard deviation over 10 splits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits)
    return found["inception_score_mean"], found["inception_score_std"]


def precision_recall(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Precision and recall, each in [0, 1], of features ``(n, dim)`` against ``(m, dim)``."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(
        samples, reference, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    return found["precision"], found["recall"]
