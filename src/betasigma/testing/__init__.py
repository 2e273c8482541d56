"""A conformance kit: the contracts of every noun, asserted on anybody's class.

    from betasigma.testing import check_sampler

    def test_my_sampler_keeps_the_contract():
        check_sampler(MySampler(steps=8))

Each check raises a :class:`ContractError` at the first contract that does not hold, in one
sentence; ``docs/conformance.md`` lists them all and says why they are there. The components of
betasigma pass the same checks in its own tests. Nothing here needs a test runner.
"""

from betasigma.testing.contract import ContractError
from betasigma.testing.dataset_contract import check_dataset
from betasigma.testing.likelihood_contract import check_likelihood
from betasigma.testing.metric_contract import check_metric
from betasigma.testing.module_contract import check_module
from betasigma.testing.network_contract import check_network
from betasigma.testing.objective_contract import check_objective
from betasigma.testing.preconditioning_contract import check_preconditioning
from betasigma.testing.sampler_contract import check_sampler
from betasigma.testing.schedule_contract import check_schedule

__all__ = [
    "ContractError",
    "check_dataset",
    "check_likelihood",
    "check_metric",
    "check_module",
    "check_network",
    "check_objective",
    "check_preconditioning",
    "check_sampler",
    "check_schedule",
]
