"""A sweep's loader composes what Hydra composes, down to types and flags, and refuses it alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from betasigma.config_tree import conf_directory
from betasigma.launch.app import register_resolvers
from betasigma.launch.composing import SweepLoader
from betasigma.launch.consent import register_search_path
from betasigma.launch.planning import loader_of_hydra
from betasigma.options import plugins

JOBS: list[tuple[str, ...]] = [
    (),
    ("seed=1",),
    ("seed=2",),
    ("seed=1", "optimizer.lr=0.1", "training.clip=null", "tags=[a,b]"),
    ("model=ncsn", "sigma.levels=5"),
    ("model=ncsn", "sigma.levels=6", "sampler=heun", "sampler.steps=3"),
    ("sampler.steps=3", "model=ncsn", "sampler=heun"),
    ("model=ncsn", "schedule=geometric_auto", "evaluation=none", "logger=none"),
    ("bridge='3'",),
    ("experiment=ncsnv2_cifar10", "batch_size=4"),
    ("experiment=ncsnv2_cifar10", "batch_size=8", "~logger", "~stop.grace"),
    ("callbacks=[early_stopping,model_summary]", "callbacks.early_stopping.patience=3"),
    ("callbacks=[early_stopping,model_summary]",),
    ("network=dit", "network.depth=1", "seed=3"),
    ("experiment=everything", "network=dit"),
    ("likelihood=flow", "+likelihood.extra=1", "++seed=4", "+new={a:{b:[1,2]}}"),
    ("sampler={_target_:x,steps:3}",),
    ("debug=overfit_one_batch", "name='a, b'", "hydra.job.name=mine"),
    ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=5", "hydra.sweep.dir=x"),
    ("cluster=slurm", "cluster.minutes=5", "seed=6"),
    ("hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=7", "steps=3"),
]

REFUSED: list[tuple[str, ...]] = [
    ("sed=1",),
    ("+seed=1",),
    ("~sed",),
    ("model=nosuch",),
    ("seed=1,2",),
    ("seed=[",),
    ("x@y=1",),
    ("sampler.steps.more=1",),
    ("callbacks=3",),
    ("hydra.sweep.dir=a,b",),
]


@pytest.fixture(autouse=True)
def initialized() -> Iterator[None]:
    plugins.allow(["mylab"])
    register_search_path()
    register_resolvers()
    with initialize_config_dir(str(conf_directory()), job_name="train", version_base="1.3"):
        yield


@pytest.fixture
def loader() -> SweepLoader:
    return SweepLoader(loader_of_hydra().get_search_path())


def described(node: Node) -> Any:
    """All that there is to say of a node: its types, its flags and its values, unresolved."""
    content = node._value()
    if isinstance(node, DictConfig) and isinstance(content, dict):
        content = {name: described(value) for name, value in content.items()}
    if isinstance(node, ListConfig) and isinstance(content, list):
        content = [described(value) for value in content]
    known = {k: v for k, v in vars(node._metadata).items() if k != "resolver_cache"}
    return type(node), known, content


@pytest.mark.parametrize("jobs", [JOBS[:6], pytest.param(JOBS[6:], marks=pytest.mark.slow)])
def test_configs_are_those_of_hydra(loader: SweepLoader, jobs: list[tuple[str, ...]]) -> None:
    """In any order, and however one that was given away is changed."""
    expected = [
        described(compose("train", list(words), return_hydra_config=True)) for words in jobs
    ]
    for _ in range(2):
        for words, wanted in zip(jobs, expected, strict=True):
            composed = loader.load_configuration("train", list(words), RunMode.RUN)
            assert described(composed) == wanted, words
            OmegaConf.set_struct(composed, False)
            composed.seed, composed.training, composed.callbacks = 9, {"clip": 7}, None
            composed.hydra.overrides.task.append("seed=9")


def test_no_file_is_read_twice(loader: SweepLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    files = SourcesRegistry.instance().resolve("file")
    load = files.load_config

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        read.append(f"{self.path}/{config_path}")
        return load(self, config_path)

    monkeypatch.setattr(files, "load_config", load_config)
    for words in (["seed=1"], ["seed=2"], ["model=ncsn"], ["model=ncsn", "seed=3"]):
        loader.load_configuration("train", words, RunMode.RUN)
    assert len(read) == len(set(read)) > 20


def test_jobs_of_a_sweep_are_those_of_hydra(loader: SweepLoader) -> None:
    own = loader_of_hydra()
    words = ["model=ncsn,ddpm", "seed=choice(1,2)", "hydra.sweep.dir=x", "hydra/launcher=joblib"]
    common = own.load_configuration("train", words, RunMode.MULTIRUN)
    for job in (["model=ncsn", "seed=1"], ["model=ddpm", "seed=2"]):
        composed = loader.load_sweep_config(common, job)
        assert described(composed) == described(own.load_sweep_config(common, job))
        assert composed.hydra.sweep.dir == "x"


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_hydra_refuses_is_refused_in_its_words(
    loader: SweepLoader, words: tuple[str, ...]
) -> None:
    def refused(by: Any) -> tuple[type, str]:
        with pytest.raises((HydraException, ValueError)) as caught:
            by.load_configuration("train", list(words), RunMode.RUN)
        return caught.type, str(caught.value)

    loader.load_configuration("train", [], RunMode.RUN)
    assert refused(loader) == refused(loader_of_hydra())
