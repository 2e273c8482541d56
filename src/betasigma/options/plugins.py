"""Outside code: which packages are allowed, how classes are found and arguments checked.

A config names classes by ``_target_``. Our own have options models. A class of an outside package
is imported only if the user who runs the command names its package:

- ``plugins=[mylab]`` on the command line, or ``betasigma.load(path, plugins=["mylab"])``,
- the environment variable ``BETASIGMA_PLUGINS``, names separated by commas,
- the entry point group ``betasigma.plugins`` of an installed package.

A checkpoint, a run directory or a config found in one names packages but never allows them.
PyTorch's own optimizers and learning-rate schedules and Lightning's own callbacks and loggers need
no consent.

Outside options models live in the module ``options`` of the package and are read before anything
heavy is imported. A class without one is imported and asked for its signature and type hints.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from betasigma.errors import UserError, did_you_mean
from betasigma.options.base import REGISTRY, ComponentOptions, Options, typed, unknown_key

VARIABLE = "BETASIGMA_PLUGINS"
"""Environment variable with the names of packages that may be imported."""

ENTRY_POINTS = "betasigma.plugins"
"""Entry point group of installed packages that may be imported."""

NO_CONSENT_NEEDED = {
    "optimizer": ("torch.optim",),
    "lr_schedule": ("torch.optim.lr_scheduler",),
    "callbacks": ("pytorch_lightning.callbacks",),
    "logger": ("pytorch_lightning.loggers",),
}
"""Packages whose classes of a group need no consent."""

LIBRARIES = frozenset(
    {
        *("betasigma", "torch", "torchvision", "pytorch_lightning", "lightning_fabric"),
        *("hydra", "omegaconf", "numpy", "scipy", "pydantic", "submitit", "wandb", "torchmetrics"),
    }
)
"""Packages whose functions a config may never call."""

Made = TypeVar("Made", bound=Callable[..., Any])

_allowed: dict[str, None] = {}

_in_python: ContextVar[bool] = ContextVar("in_python", default=False)


class NotAllowed(UserError):
    """A config names code of a package that nobody has let in.

    Args:
        key, target: of the config.
        beside: other packages that it needs; those that are let in already are named with them.

    Attributes:
        key, target: as given.
        package: the name of the package.
    """

    def __init__(self, key: str, target: str, beside: Iterable[str] = ()) -> None:
        self.key, self.target, self.package = key, target, target.partition(".")[0]
        names = list(dict.fromkeys([*_allowed, self.package, *beside]))
        super().__init__(
            f"{key}._target_={target} is code of the package {self.package}, which is imported "
            f"only where you allow it: add {consent(*names)} (or set {VARIABLE}={','.join(names)}) "
            f"if you trust {'it' if len(names) == 1 else 'them'}"
        )


@contextmanager
def named_in_python() -> Iterator[None]:
    """Have the refusals of this block name packages as Python takes them: ``plugins=["mylab"]``."""
    before = _in_python.set(True)
    try:
        yield
    finally:
        _in_python.reset(before)


def consent(*packages: object) -> str:
    """What is typed to let packages in: ``plugins=[mylab]``."""
    names = [f'"{name}"' if _in_python.get() else str(name) for name in packages]
    return f"plugins=[{','.join(names)}]"


def allow(packages: Iterable[str]) -> None:
    """Allow configs in this process to name these packages, and read their options models.

    Args:
        packages: importable names, also from the current directory.

    Raises:
        UserError: if a package cannot be found.
    """
    for name in packages:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(name)):
            raise UserError(
                f"{consent(name)} is not the name of a package: write {consent('mylab')}"
            )
        if name in _allowed:
            continue
        if _is_never_a_plugin(name):
            raise UserError(
                f"{consent(name)} is no package of your own: configs never name what belongs to "
                f"Python or to the libraries that betasigma stands on"
            )
        if not _find(name):
            raise UserError(
                f"{consent(name)} cannot be imported: there is no package {name} on Python's path "
                f"or in {Path.cwd()}"
            )
        _allowed[name] = None
        try:
            _read_options(name)
        except BaseException:  # else the next call would go on without its options models
            del _allowed[name]
            raise


def allow_named() -> None:
    """Allow the packages that ``BETASIGMA_PLUGINS`` and entry points name.

    Raises:
        UserError: if a package of ``BETASIGMA_PLUGINS`` cannot be found.
    """
    named = os.environ.get(VARIABLE, "").replace(",", " ").split()
    try:
        allow(named)
    except UserError as error:
        raise UserError(f"{VARIABLE}={os.environ[VARIABLE]}: {error}") from None
    allow(_named_by_entry_points())


@cache
def _named_by_entry_points() -> list[str]:
    """Found once: the files of every installed distribution are read for it."""
    return [point.value.partition(":")[0] for point in metadata.entry_points(group=ENTRY_POINTS)]


def allowed() -> tuple[str, ...]:
    """Return the packages that configs may name."""
    return tuple(_allowed)


def options_model(target: str, group: str) -> type[ComponentOptions] | None:
    """Options model of a class of ours, of the stack, or of a package that was let in."""
    model = REGISTRY.get(group, {}).get(target)
    ours = model is not None and model.__module__.startswith("betasigma.")
    return model if ours or is_allowed(target, group) else None


def is_allowed(target: str, group: str = "") -> bool:
    """Whether what ``target`` names may be imported."""
    known = (*_allowed, *NO_CONSENT_NEEDED.get(group, ()))
    return any(target.startswith(f"{name}.") for name in known)


def config_folders() -> list[Path]:
    """Return the ``conf`` folders of the packages, which join Hydra's search path."""
    folders = []
    for name in _allowed:
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / "conf").is_dir():
                folders.append(Path(folder).resolve() / "conf")
    return folders


def versions(content: Mapping[str, Any]) -> dict[str, str | None]:
    """The outside packages that a config in plain containers names, with their versions; ``None``
    for one that has none.
    """
    from betasigma.options.evaluation import class_node

    evaluation = content.get("evaluation") or {}
    entries = [*evaluation.get("metrics", ()), evaluation.get("extractor")]
    by_name = [class_node(entry) for entry in entries if isinstance(entry, str)]
    targets = outside_targets([content, *filter(None, by_name)])
    packages = dict.fromkeys(target.partition(".")[0] for target in targets)
    return {name: _version(name) for name in packages}


def changed_versions(recorded: Mapping[str, str | None]) -> list[str]:
    """Describe the packages whose version is not what :func:`versions` found when a run began."""
    let_in = {name.partition(".")[0] for name in _allowed}
    pairs = [(name, then, _version(name)) for name, then in recorded.items() if name in let_in]
    return [f"{name} {then}, now {now}" for name, then, now in pairs if then != now]


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Installed distributions by package, which takes seconds to find."""
    return metadata.packages_distributions()


def _version(package: str) -> str | None:
    distributions = _distributions().get(package) or [
        point.dist.name  # one that lists no files, as some that are installed to be edited
        for point in metadata.entry_points(group=ENTRY_POINTS)
        if point.dist is not None and point.module.partition(".")[0] == package
    ]
    version = metadata.version(distributions[0]) if distributions else None
    return version or getattr(sys.modules.get(package), "__version__", None)


def outside_targets(content: Any) -> list[str]:
    """Every ``_target_`` in a config's plain containers that is neither ours nor the stack's."""
    found: list[str] = []
    if isinstance(content, Mapping):
        target = content.get("_target_")
        stack = [f"{name}." for names in NO_CONSENT_NEEDED.values() for name in names]
        if isinstance(target, str) and not target.startswith(("betasigma.", *stack)):
            found.append(target)
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            found += outside_targets(value)
    return found


def refuse_without_consent(target: str, group: str, key: str) -> None:
    """Refuse a class of a package that the user has not allowed."""
    package = target.partition(".")[0]
    if _is_never_a_plugin(package) or not re.fullmatch(r"\w+(\.\w+)+", target):
        known = REGISTRY.get(group, {})
        stack = " or ".join(NO_CONSENT_NEEDED.get(group, ()))
        theirs = f"a class of {stack}" if stack else ", ".join(known)
        choices = ", or ".join(filter(None, [theirs, f"one of your own ({consent('mylab')})"]))
        hint = did_you_mean(target, known, cutoff=0.75) or f"choose {choices}"
        raise UserError(f"{key}._target_={target} is not a class that {key} takes; {hint}")
    raise NotAllowed(key, target)


def locate(target: str, group: str, key: str | None = None) -> Callable[..., Any]:
    """Import the class or function that ``target`` names.

    Args:
        target: ``package.module.name``.
        group: of the config; some need no consent for PyTorch's and Lightning's classes.
        key: dotted place of the node, for messages.

    Raises:
        UserError: without consent, or where there is no such class or function of that package.
    """
    key = key or group
    if options_model(target, group) is None and not is_allowed(target, group):
        refuse_without_consent(target, group, key)
    return _attribute(target, key)


def outside_options(group: str, content: Mapping[str, Any], key: str) -> ComponentOptions:
    """Make the options of a class without an options model, checked by its signature.

    Raises:
        UserError: without consent, or for an argument that the class does not take.
    """
    target = str(content["_target_"])
    if not is_allowed(target, group):
        refuse_without_consent(target, group, key)
    made = _attribute(target, key)
    _check_kind(made, group, key, target)
    base = _base_of(group)
    arguments = {k: v for k, v in content.items() if k not in ("_target_", *not_arguments(group))}
    refuse_given(group, arguments, key)
    check_arguments(made, arguments, key, partial=True)
    required = {n for n, p in (_parameters(made) or {}).items() if p.default is p.empty}
    traits = base.traits_of_signature(required - arguments.keys()) | _traits(made, base)
    model = type(
        f"{base.__name__}Of{target.rpartition('.')[2]}",
        (base,),
        {
            "outside": True,
            "__module__": base.__module__,
            **traits,
            "__annotations__": {name: ClassVar[Any] for name in traits},
            "model_config": ConfigDict(extra="allow"),
        },
    )
    return model.parse(content, key)  # type: ignore[attr-defined]


def refuse_given(group: str, arguments: Mapping[str, Any], key: str) -> None:
    """Refuse arguments that every class of a group is given by the framework."""
    for name in sorted(GIVEN.get(group, set()) & arguments.keys()):
        raise UserError(
            f"{key}.{name}={typed(arguments[name])} cannot be chosen here: every {group} is given "
            f"its {name}, which follows from the data or from other keys; leave it out"
        )


def check_traits(options: Options) -> None:
    """Refuse an outside class that says another thing of itself than its options model does.

    The checks before a run ask the options model, and the run asks the class. The class is
    imported, so whatever a model refuses by itself is refused before.
    """
    for name in type(options).model_fields:
        if isinstance(within := getattr(options, name), Options):
            check_traits(within)
    model = type(options)
    if not isinstance(options, ComponentOptions) or options.outside:
        return
    if model.__module__.startswith("betasigma."):
        return
    made = locate(options.target, options.group)
    if options.group in KINDS and inspect.isclass(made):
        _check_finished(made, options.group, options.group, options.target)
    for name, value in _traits(made, _base_of(options.group)).items():
        said = getattr(model, name)
        if isinstance(said, _PLAIN) and value != said:
            raise UserError(
                f"{options.group}._target_={options.target} has {name}={value}, and its options "
                f"model {model.__name__} has {name}={said}: state it in the model, and in the "
                f"class write {name} = {model.__name__}.{name}"
            )


def is_shared_key(group: str, target: str, name: str) -> bool:
    """Whether a key of a group's node means the same for every class of the group, and this class
    takes it.

    Raises:
        UserError: without consent to the class.
    """
    if name not in _base_of(group).model_fields:
        return False
    model = options_model(target, group)
    if model is not None:
        return name in model.model_fields
    return name in not_arguments(group) or takes(locate(target, group), name)


def _check_kind(made: Callable[..., Any], group: str, key: str, target: str) -> None:
    """Refuse a class of another kind; what a function returns is seen when it is called."""
    if group not in KINDS or not inspect.isclass(made):
        return
    home, name = KINDS[group]
    if not issubclass(made, getattr(importlib.import_module(home), name)):
        raise UserError(
            f"{key}._target_={target} is no {name}: {key} takes a class of {home}.{name}"
        )
    _check_finished(made, group, key, target)
    if target == "torch.optim.SparseAdam":
        raise UserError(
            f"{key}._target_={target} takes sparse gradients alone, and a network's are dense: "
            f"take another optimizer, e.g. torch.optim.Adam"
        )
    if group == "optimizer":
        step = made.step  # type: ignore[attr-defined]
        closure = inspect.signature(step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise UserError(
                f"{key}._target_={target} evaluates the loss again and again within a step, and a "
                f"step here is one evaluation: take an optimizer whose step() needs no closure"
            )


def _check_finished(made: type, group: str, key: str, target: str) -> None:
    """Refuse a class that lacks what its base leaves to it: that would be found after training."""
    home, name = KINDS[group]
    base = getattr(importlib.import_module(home), name)
    for choice in LEFT_TO_SUBCLASSES.get(group, ()):
        if all(getattr(made, what, None) is getattr(base, what, None) for what in choice):
            raise UserError(
                f"{key}._target_={target} must define {' or '.join(choice)}, which {name} leaves "
                f"to its subclasses"
            )


KINDS = {
    "network": ("torch.nn", "Module"),
    "schedule": ("betasigma.schedules", "NoiseSchedule"),
    "objective": ("betasigma.objectives", "Objective"),
    "sampler": ("betasigma.samplers", "Sampler"),
    "edit": ("betasigma.editing", "Edit"),
    "model": ("betasigma.modules", "DiffusionModule"),
    "metric": ("betasigma.evaluation.metrics", "SampleMetric"),
    "extractor": ("betasigma.evaluation.features", "FeatureExtractor"),
    "optimizer": ("torch.optim", "Optimizer"),
    "callbacks": ("pytorch_lightning", "Callback"),
    "logger": ("pytorch_lightning.loggers", "Logger"),
}
"""Class that a group's classes are of, by its module and name."""

LEFT_TO_SUBCLASSES = {
    "schedule": (("prior_std",), ("_alpha",), ("_sigma",)),
    "objective": (("value", "loss"),),
    "sampler": (("step", "trajectory"),),
    "metric": (("compute",),),
    "extractor": (("features_and_logits",),),
}
"""What each class of a group defines, where one of several is enough."""


def check_arguments(
    made: Callable[..., Any], arguments: Mapping[str, Any], key: str, partial: bool = False
) -> dict[str, Any]:
    """Compare arguments with a signature and its type hints. Return them, with a whole number of a
    parameter of type float as a float: it is the same however it was typed.

    Args:
        made: class or function.
        arguments: by name.
        key: dotted place of the node.
        partial: whether more arguments are given later by name, so that none is missing yet.
    """
    name = getattr(made, "__name__", str(made))
    parameters = _parameters(made)
    if parameters is None:
        return dict(arguments)
    hints = _hints(made)
    more = _keywords(parameters, hints)
    named = refuse_unknown(made, arguments, key, OFFERED)
    for argument, parameter in named.items():
        required = parameter.default is parameter.empty
        if required and argument not in arguments and not (partial and argument in OFFERED):
            of_a_list = f"{argument}: … beside its _target_"
            give = of_a_list if key.endswith("]") else f"++{key}.{argument}=…"
            raise UserError(f"{key}.{argument} has no value, and {name} needs one: give {give}")
    hints |= more or {}
    return {
        argument: _checked(hints[argument], value, f"{key}.{argument}")
        if argument in hints
        else value
        for argument, value in arguments.items()
    }


def refuse_unknown(
    made: Callable[..., Any],
    arguments: Mapping[str, Any],
    key: str,
    unsaid: Collection[str] = (),
) -> dict[str, inspect.Parameter]:
    """Refuse arguments that a class or function does not take, with those that it takes except
    ``unsaid``. Return its parameters by name.
    """
    parameters = _parameters(made) or {}
    named = {
        n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    more = _keywords(parameters, _hints(made))
    shown = [n for n in (*named, *(more or ())) if n not in unsaid] or list(named)
    for argument, value in arguments.items():
        if more is not None and argument not in named and argument not in more:
            raise UserError(unknown_key(f"{key}.{argument}", value, shown, made.__name__))
    return named


def other_signature(function: Callable[..., Any], *arguments: str) -> str:
    """The signature of a function that cannot be called with so many arguments; empty where it can,
    or has none to ask, as TorchScript's methods.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ""
    try:
        signature.bind(*arguments)
    except TypeError:
        return str(signature)
    return ""


class Component:
    """Base of the classes of ours that a config may name. An argument that they do not take is
    refused in a notebook as on the command line.
    """

    config_group: ClassVar[str] = ""

    def __new__(cls, *given: Any, **arguments: Any) -> Self:
        if arguments:
            refuse_unknown(cls, arguments, cls.config_group)
        return super().__new__(cls)


def takes_by_name(function: Made) -> Made:
    """The same of a function that makes a schedule."""

    @wraps(function)
    def checked(*given: Any, **arguments: Any) -> Any:
        refuse_unknown(function, arguments, "schedule")
        return function(*given, **arguments)

    return typing.cast(Made, checked)


FROM_DATA = ("sample_shape", "in_channels", "out_channels", "image_size", "dim", "out_dim")
"""Arguments that follow from the data."""

OFFERED = frozenset(
    {
        *FROM_DATA,
        *("true_score", "seed", "split", "root", "params", "optimizer", "fused", "levels"),
        *("save_dir", "value_range"),
        *("denoiser", "objective", "warmup", "decay", "compile", "lr_schedule", "extractor"),
    }
)
"""Arguments that the framework gives by name to whoever asks for them."""

GIVEN = {
    "model": OFFERED,
    "network": {*FROM_DATA},
    "objective": {"true_score"},
    "optimizer": {"params"},
    "lr_schedule": {"optimizer"},
    "data.source": {"split"},
}
"""Those of each group that a config cannot give in their place."""


def takes(made: Callable[..., Any], name: str) -> bool:
    """Whether a class or function has a parameter of this name."""
    return name in (_parameters(made) or ())


def _parameters(made: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Parameters of a class or function by name; ``None`` where it has no signature."""
    try:
        return inspect.signature(made).parameters
    except (TypeError, ValueError):
        return None


_PLAIN = (bool, int, float, str, type(None))
_INNER = {"group", "node", "targets", "knobs", "outside", "package"}


def not_arguments(group: str) -> tuple[str, ...]:
    """Keys of a group's node that are read by the framework, and not given to the class."""
    from betasigma.options.likelihoods import MEASURED
    from betasigma.options.models import ModelOptions

    if group == "likelihood":
        return MEASURED
    return tuple(ModelOptions.model_fields) if group == "model" else ()


def _traits(made: Callable[..., Any], base: type[ComponentOptions]) -> dict[str, Any]:
    """Attributes of a class that the options models of its group state too."""
    return {
        name: getattr(made, name)
        for name in vars(base)
        if not name.startswith("_")
        and name not in _INNER
        and hasattr(made, name)
        and not callable(getattr(base, name, None))
        and isinstance(getattr(made, name), _PLAIN)
    }


def _base_of(group: str) -> type[ComponentOptions]:
    """The options model that all of a group share."""
    known = next(iter(REGISTRY.get(group, {}).values()), ComponentOptions)
    for candidate in reversed(known.__mro__):
        if issubclass(candidate, ComponentOptions) and candidate.__dict__.get("group") == group:
            return candidate
    return ComponentOptions


def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    function = made.__init__ if inspect.isclass(made) else made
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a hint that cannot be read checks nothing
        return {}


def _keywords(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Types of what ``**options: Unpack[…]`` takes; ``None`` where it may be anything."""
    rest = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    if rest is None:
        return {}
    if typing.get_origin(hints.get(rest)) is not typing.Unpack:
        return None
    return typing.get_type_hints(typing.get_args(hints[rest])[0])


def _checked(hint: Any, value: Any, key: str) -> Any:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # nor does a type that pydantic cannot check
        return value
    try:
        found = adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input should", "must").replace("input", "value")
        raise UserError(f"{key}={typed(value)} {message}") from None
    # what pydantic would convert reaches the class as it is: "16" for an integer, say
    kind = type(found)
    whole = kind is float and type(value) is int
    if kind in (bool, int, float) and not (whole or kind is type(value)):
        raise UserError(f"{key}={typed(value)} must be of type {kind.__name__}")
    return found if whole else value


def _attribute(target: str, key: str) -> Callable[..., Any]:
    """Class or function ``package.module.name``, defined in the package that it is named in."""
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key}._target_={target} is not there: there is no module {error.name}"
            ) from None
        raise
    found = getattr(module, name, None)
    owner = str(getattr(found, "__module__", ""))
    same = owner.partition(".")[0] == target.partition(".")[0]
    if not same or not _makes_things(found):
        known = [
            other
            for other, value in vars(module).items()
            if _makes_things(value) and value is not found
        ]
        near = did_you_mean(name, known, before=f"{module_name}.")
        hint = f"; {near}" if near else ""
        raise UserError(
            f"{key}._target_={target} is not a class or function of {module_name}{hint}"
        )
    return typing.cast(Callable[..., Any], found)


def _makes_things(value: Any) -> bool:
    """Whether it is a class or a function, also one that ``functools.cache`` has wrapped."""
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))


def _is_never_a_plugin(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or top in LIBRARIES


def _find(name: str) -> bool:
    """Whether a package can be imported, from the current directory too."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _read_options(name: str) -> None:
    """Import the package's module ``options``, which registers its options models."""
    module = f"{name}.options"
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a single module, no package
        there = False
    if there:
        importlib.import_module(module)
