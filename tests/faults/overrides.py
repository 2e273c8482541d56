"""Command lines of train.py at random, composed as Hydra composes them: choices of groups, and
keys with values that fit or do not. What is drawn follows from the options models, so a new key is
drawn too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from hydra import initialize_config_dir
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from betasigma.commands.checks import CHECKS
from betasigma.config_tree import conf_directory
from betasigma.launch.app import as_hydra_takes_it, is_refusal, register_resolvers, sentence
from betasigma.launch.command_line import CommandLine, read_command_line
from betasigma.launch.composing import SweepLoader
from betasigma.launch.configs import Configs, Studies
from betasigma.launch.consent import allow_typed, check_consent, register_search_path
from betasigma.launch.planning import loader_of_hydra
from betasigma.launch.preflight import check_machine, refuse_search, refuse_unsearched
from betasigma.launch.slurm import refuse_single
from betasigma.options.apps import Train
from betasigma.options.base import REGISTRY, Options

SMALL = ("hardware=cpu", "logger=none", "evaluation=none")
"""What every case has: it trains here, in this process, and sends nothing."""

OF_TRAINING = (
    *("steps=2", "training.warmup=0", "batch_size=4", "training.num_samples=2"),
    *("data.val_size=4", "hardware.precision=32"),
)

IMAGES = ("network.channels=8", "network.blocks=1", "network.multipliers=[1,1]")

GROUPS = {
    "model": ("ddpm", "ncsn", "ncsn_v1", "ncsn_v2", "oracle"),
    "schedule": ("linear", "cosine", "sigmoid", "vp_sde", "sub_vp_sde", "geometric"),
    "sampler": (
        *("ddim", "ancestral", "heun", "euler", "dpm_solver", "predictor_corrector"),
        *("annealed_langevin", "adaptive_ode"),
    ),
    "objective": ("denoising", "edm", "hybrid", "explicit", "implicit", "sliced", "likelihood"),
    "likelihood": ("discrete_bound", "continuous_bound", "flow"),
    "optimizer": ("adamw", "sgd"),
    "lr_schedule": ("cosine", "linear", "step", "exponential"),
    "evaluation": ("default",),
    "callbacks": ("early_stopping",),
}
"""Choices of the groups, of which a case draws some."""

STEPPED = {"annealed_langevin": ("sampler.inner_steps=1", "sampler.steps=3"), "adaptive_ode": ()}


class Case(NamedTuple):
    """A command line."""

    groups: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.groups, *self.keys)


def bases(count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Choices of groups with what makes them small, at random."""
    draw = random.Random(seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        points = draw.random() < 0.4
        words = list(SMALL)
        chosen = {}
        for group, choices in GROUPS.items():
            if draw.random() < (0.6 if group in ("model", "sampler") else 0.2):
                chosen[group] = draw.choice(choices)
        oracle = chosen.get("model") == "oracle"
        if oracle:
            chosen = {
                k: v
                for k, v in chosen.items()
                if k not in ("objective", "lr_schedule", "optimizer", "callbacks")
            }
        elif not points and chosen.get("objective") == "explicit":
            del chosen["objective"]
        words += () if oracle else OF_TRAINING
        if points:
            words += ["data=mixture", *(() if oracle else ("network.width=8", "network.depth=1"))]
            if draw.random() < 0.3 and not oracle:
                words.append("network=mlp_energy")
        elif not oracle:
            network = draw.choice(("unet_8", "unet_8", "ddpmpp", "refinenet_v2"))
            words += [f"network={network}", *IMAGES]
            words += {
                "ddpmpp": ["network.attention=[]"],
                "refinenet_v2": ["network.multipliers=[1,1,1]"],
            }.get(network, [])
            if network == "refinenet_v2":
                words.remove("network.blocks=1")
        sampler = chosen.setdefault("sampler", "ddim")
        words += [f"{group}={choice}" for group, choice in chosen.items()]
        words += STEPPED.get(sampler, ("sampler.steps=3",))
        if chosen.get("evaluation"):
            words += ["evaluation.n=4", "evaluation.metrics=[neighbours]"]
        if chosen.get("likelihood"):
            words += ["likelihood.n=1"]
        found[tuple(words)] = None
    return list(found)


# ---------------------------------------------------------------- composing


REFUSALS = (HydraException, OmegaConfBaseException)
"""What Hydra raises for a key that there is not."""


class Composed(NamedTuple):
    """A command line that was composed and checked."""

    config: DictConfig | None
    """``None`` if it was refused, with this sentence."""
    refused: str = ""
    bug: BaseException | None = None
    """What a user would see as a traceback."""


@cache
def tree() -> Configs:
    """The config tree."""
    return Configs(conf_directory(), "train", CommandLine({}, []))


def configs_of(line: CommandLine) -> Configs:
    """The config tree, as a command line sees it. No word of a case says where configs are, so that
    they share what is read of it.
    """
    configs = Configs(conf_directory(), "train", line, tree()._files)
    vars(configs)["_repository"] = tree()._repository
    return configs


@cache
def loader() -> SweepLoader:
    """What composes the jobs of a sweep: to what Hydra composes (launch/test_composing.py)."""
    return SweepLoader(loader_of_hydra().get_search_path())


@cache
def studies() -> Studies:
    return Studies(compose(Case((), ())))


def compose(case: Case) -> DictConfig:
    """The config of a case."""
    register_search_path()
    register_resolvers()
    line = read_command_line(list(case.words))
    allow_typed(line.overrides)
    words = as_hydra_takes_it(line, configs_of(line)).overrides
    with initialize_config_dir(str(conf_directory()), job_name="train", version_base="1.3"):
        return loader().load_configuration("train", [*words, "hydra.mode=RUN"], RunMode.RUN)


def checked(case: Case) -> Composed:
    """Compose a case, and check it as a command does before there is a run directory."""
    configs = configs_of(read_command_line(list(case.words)))
    try:
        config = compose(case)
        overrides = list(config.hydra.overrides.task)
        check_consent(config)
        refuse_single(config)
        refuse_search(config)
        studies().check(overrides)
        check_machine(config)
        CHECKS["train"].check(config, overrides)
        refuse_unsearched(config, overrides)
        CHECKS["train"].decide(config)
        CHECKS["train"].preview(config)
        return Composed(config)
    except Exception as error:
        if not is_refusal(error, configs):
            return Composed(None, bug=error)
        return Composed(None, refused=sentence(error, configs))


# ---------------------------------------------------------------- values


WILD = (
    *("-1", "0", "1e12", "1000000000000", "1e400", ".inf", "nan", "null", "x", "[]", "[1,2]"),
    *("{a:1}", "''", "true", "0.5", "1_000", "∞", "[[1]]", "1e-320", "9223372036854775807"),
    *("${seed}", "choice(1,2)", "a b", "-0.0", "[null]", "2.0"),
)
"""Values that few keys take."""


def values(annotation: Any) -> list[str]:
    """Values that a key of this type may take, as they are typed."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(inside[0])
    if origin is Literal:
        return [str(value) for value in inside]
    if origin in (Union, UnionType):
        return [value for member in inside for value in values(member)]
    if origin is list:
        own = values(inside[0]) or ["1"]
        return [f"[{own[0]}]", f"[{own[0]},{own[-1]}]", f"[{','.join(own[:3])}]", "[]"]
    return {
        bool: ["true", "false"],
        int: ["1", "2", "3", "4", "8"],
        float: ["0.01", "0.1", "0.5", "0.9", "1", "2", "0", "30"],
        str: ["x"],
        NoneType: ["null"],
    }.get(annotation, [])


def keys_of(config: DictConfig) -> dict[str, list[str]]:
    """Keys of a composed config, each with values that it may take."""
    found: dict[str, list[str]] = {}

    def add(node: str, schema: type[Options]) -> None:
        for name, field in schema.model_fields.items():
            key = f"{node}.{field.alias or name}".lstrip(".")
            taken = [o for o in (field.annotation, *get_args(field.annotation)) if is_node(o)]
            if taken and name in REGISTRY and OmegaConf.select(config, f"{key}._target_"):
                target = str(OmegaConf.select(config, f"{key}._target_"))
                if target in REGISTRY[name]:
                    add(key, REGISTRY[name][target])
            elif taken:
                add(key, taken[0])
            elif name != "target":
                found[key] = values(field.annotation)

    add("", Train)
    return {key: known for key, known in found.items() if key not in (*NEVER, *GROUPS)}


def is_node(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


NEVER = {"resume", "init.run", "plugins", "cluster", "hardware.accelerator", "hardware.devices"}
"""Keys that lead to other files or processes; they have tests of their own."""


@st.composite
def cases(draw: st.DrawFn, known: Sequence[tuple[str, ...]]) -> Case:
    """A case: choices of groups, and up to three keys, most of which fit."""
    groups = draw(st.sampled_from(known))
    keys, there = keys_of_groups(groups)
    if not draw(st.integers(0, 40)):
        group, value = draw(st.sampled_from(sorted(GROUPS))), draw(st.sampled_from(WILD))
        return Case((*groups, f"{group}={value}"), ())
    typed = []
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(there if draw(st.integers(0, 15)) else sorted(keys)))
        fits = keys[key] and draw(st.integers(0, 3))
        value = draw(st.sampled_from(keys[key] if fits else WILD))
        sign = "" if key in there else "+"
        misspelt = draw(st.integers(0, 30)) == 0
        typed.append(f"{sign}{key[:-1] if misspelt else key}={value}")
    return Case(groups, tuple(typed))


@cache
def keys_of_groups(groups: tuple[str, ...]) -> tuple[dict[str, list[str]], list[str]]:
    """Keys with values that they may take, and those whose node is there; of choices that are
    refused none.
    """
    try:
        config = compose(Case(groups, ()))
    except REFUSALS:
        return {}, []
    keys = keys_of(config)
    return keys, [key for key in sorted(keys) if "." not in key or _has_node(config, key)]


def _has_node(config: DictConfig, key: str) -> bool:
    return OmegaConf.select(config, key.rpartition(".")[0]) is not None


def of_components(config: DictConfig) -> Iterator[tuple[str, list[str]]]:
    """Keys of what is built, each with values that it may take."""
    parts = ("network", "preconditioning", "objective", "sampler", "sigma", "beta", "denoiser")
    for key, known in keys_of(config).items():
        in_config = OmegaConf.select(config, key.partition(".")[0]) is not None
        if key.partition(".")[0] in (*parts, "model", "data") and in_config:
            yield key, known
