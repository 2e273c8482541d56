"""What options models share: types with ranges, the check, the error sentence.

An options model declares type, range, default and meaning of each key of a component, and what the
component requires of others (:meth:`ComponentOptions.check_with`). The config check, the
constructor, ``--help`` and every error message read it. Nothing here imports PyTorch or
Hydra, so a wrong command line is refused at once.

A component's model is found by its ``_target_``: defining a subclass of a group's model with
``targets`` registers it. An outside package does the same in its module ``options``.
"""

from __future__ import annotations

import copy
import json
import re
import types
from collections.abc import Collection, Iterable, Mapping, Set
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo

from betasigma.errors import UserError, did_you_mean, few

if TYPE_CHECKING:
    from betasigma.options.composition import Composition

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
Auto = Literal["auto"]

AUTO = "auto"
"""Value of a key that is computed from the data or the machine."""


def option(default: Any, meaning: str) -> Any:
    """Declare a key with its default and its meaning."""
    return Field(default, description=meaning)


class Unfit(ValueError):
    """What a value must be, without the key and the value."""


def written(pattern: str, how: str) -> BeforeValidator:
    """A type of text that fits ``pattern`` as a whole: it must be ``how``, as messages say."""

    def check(text: Any) -> Any:
        if not isinstance(text, str) or not re.fullmatch(pattern, text):
            raise Unfit(f"must {how}")
        return text

    return BeforeValidator(check)


def listed(how: str) -> BeforeValidator:
    """A list that is written as ``how``, as messages about anything else say."""

    def check(value: Any) -> Any:
        if not isinstance(value, list):
            raise Unfit(f"must be {how}")
        return value

    return BeforeValidator(check)


class Options(BaseModel):
    """A node of the config. It has no other keys, converts no types and takes finite numbers."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        defer_build=True,  # most commands check a few of a hundred nodes
    )

    node: ClassVar[str] = ""
    """Dotted place of the node in the config; ``""`` for the top."""
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    """Defaults by key, for the signatures of constructors; lists as tuples."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        known = {key: field.default for key, field in cls.model_fields.items()}
        cls.DEFAULTS = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}

    @classmethod
    def check(cls, **values: Any) -> Self:
        """Check the arguments of a constructor.

        Args:
            values: by key; tuples count as lists, NumPy's numbers as Python's.

        Raises:
            UserError: for the first impossible value, by its name in the config.
        """
        return cls.parse({key: _plain(value) for key, value in values.items()})

    def unused(self, composition: Composition) -> dict[str, str]:
        """Keys that have no effect beside the rest of the config; of nodes within, their dotted
        keys.

        Returns:
            By key, why: what follows "has no effect" in a sentence. Where another value would give
            it one, it begins with "without".
        """
        return {
            f"{name}.{key}": why
            for name in type(self).model_fields
            if isinstance(node := getattr(self, name), Options)
            for key, why in node.unused(composition).items()
        }

    @classmethod
    def check_own(cls, values: Mapping[str, Any]) -> Self:
        """Check those of these values that have a key here: of ``locals()`` in a constructor.

        Raises:
            UserError: for the first impossible value, by its name in the config.
        """
        return cls.check(**{key: values[key] for key in cls.model_fields if key in values})

    def refuse_given(self, keys: Iterable[str], why: str) -> None:
        """Refuse those of these keys that have another value than their default.

        Raises:
            ValueError: with ``why`` after the key and its value.
        """
        for key in keys:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"{_join(self.node, key)}={typed(value)} {why}")

    @classmethod
    def parse(cls, content: Mapping[str, Any], node: str | None = None) -> Self:
        """Parse a node of plain containers.

        Args:
            content: by key.
            node: its dotted place in the config, where it is not the usual one.

        Raises:
            UserError: for the first key that does not fit.
        """
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            raise UserError(sentence(error, dict(content), node or cls.node, cls)) from None


class ComponentOptions(Options):
    """Options of the class that a ``_target_`` names."""

    group: ClassVar[str] = ""
    """Group of the config, and the node that the options are in."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Classes and functions that take these options."""
    knobs: ClassVar[str | None] = None
    """Top node that users set, if this node only reads from it."""
    turned: ClassVar[dict[str, str]] = {}
    """Keys that have another name in ``knobs``."""
    outside: ClassVar[bool] = False
    """Whether the options stand for a class that has no options model."""

    target: str = Field("", alias="_target_")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.node = cls.knobs or cls.group  # a sentence names the key that users turn
        for target in cls.__dict__.get("targets", ()):
            REGISTRY.setdefault(cls.group, {})[target] = cls

    @classmethod
    def traits_of_signature(cls, required: Set[str]) -> dict[str, Any]:
        """Tell what a class without an options model is like from the arguments that it requires
        and the config does not give.
        """
        return {}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "target"}

    def check_with(self, composition: Composition) -> None:
        """Refuse options that do not fit the rest of the config.

        Raises:
            UserError: naming the key, its value and what would be accepted.
        """


REGISTRY: dict[str, dict[str, type[ComponentOptions]]] = {}
"""Options models by group and ``_target_``."""


def component(group: str, only: type[ComponentOptions] | None = None) -> Any:
    """Type of a field that holds a component of this group, or of the one kind ``only``."""

    def parse(node: Any, info: ValidationInfo) -> Any:
        if node is None:
            return None  # which the field allows or not
        options = parse_component(group, node, gone=info.context)
        if only is not None and not isinstance(options, only):
            accepted = " or ".join(only.targets)
            raise UserError(f"{group}._target_={options.target} must be {accepted}")
        return options

    return BeforeValidator(parse)


def parse_component(
    group: str, content: Any, key: str | None = None, gone: list[str] | None = None
) -> Any:
    """Parse the node of a component.

    Args:
        group: of the config.
        content: the node, with ``_target_``; options that are parsed already pass.
        key: dotted place of the node, where it is not the group's.
        gone: takes the keys that are unknown, which are left out; ``None`` to refuse them.

    Raises:
        UserError: if its ``_target_`` may not be built, or a key does not fit.
    """
    from betasigma.options import plugins

    if isinstance(content, ComponentOptions):
        return content
    if not isinstance(content, Mapping):
        raise UserError(f"{key or group}={typed(content)} must be a node with a _target_")
    target = content.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{key or group}._target_ has no value; give the path of a class")
    model = plugins.options_model(target, group)
    if model is None:
        return plugins.outside_options(group, content, key or group)
    if gone is None:
        return model.parse(content, key)
    options, unknown = parse_leniently(model, content)
    gone += [name for name in unknown if name not in gone]
    return options


def by_name(group: str, key: str) -> Any:
    """Type of a field ``key`` that holds any number of components of a group, each by a name of the
    user's. The nodes are checked and stay as they are.
    """

    def check(nodes: Any) -> Any:
        if not isinstance(nodes, Mapping):
            raise UserError(
                f"{key}={typed(nodes)} must be a name with a _target_: write +{key}.mine._target_=…"
            )
        for name, node in nodes.items():
            parse_component(group, node, f"{key}.{name}")
        return nodes

    return BeforeValidator(check)


def parse_leniently(schema: type[Options], content: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Parse a node that an earlier version wrote. Unknown keys are left out.

    Returns:
        The options, and the keys that were left out.

    Raises:
        UserError: for an impossible value.
    """
    kept, gone = copy.deepcopy(dict(content)), list[str]()
    while True:
        try:
            return schema.model_validate(kept, context=gone), gone
        except ValidationError as error:
            extra = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
            if not extra:
                raise UserError(sentence(error, kept, schema.node, schema)) from None
            gone.append(_join(schema.node, _key(extra[0], kept)))
            _at(extra[0][:-1], kept).pop(str(extra[0][-1]))


def dump(options: Options) -> dict[str, Any]:
    """Return options as plain containers, under the names of the config.

    For a class without an options model, only given keys are returned, and those that the framework
    itself reads.
    """
    from betasigma.options.plugins import not_arguments

    fields = type(options).model_fields
    named: Collection[str] = fields
    if isinstance(options, ComponentOptions) and options.outside:
        named = (options.model_fields_set | {*not_arguments(options.group)}) & fields.keys()
    values = {fields[name].alias or name: _dumped(getattr(options, name)) for name in named}
    return {**values, **(options.model_extra or {})}


def _dumped(value: Any) -> Any:
    if isinstance(value, Options):
        return dump(value)
    if isinstance(value, dict):
        return {key: _dumped(inner) for key, inner in value.items()}
    return copy.deepcopy(value)


# ---------------------------------------------------------------- sentences


def sentence(
    error: ValidationError, content: dict[str, Any], node: str, schema: type[BaseModel]
) -> str:
    """Describe the first error in one sentence: the key, the value, what is accepted."""
    # of what may be of several types, the one that fails furthest inside was meant
    first = max(error.errors(), key=lambda one: _key(one["loc"], content).count("["))
    own = _key(first["loc"], content)
    if first["type"] == "missing":
        own = _join(own, str(first["loc"][-1]))
    key = _join(node, getattr(schema, "turned", {}).get(own, own))
    if first["type"] == "value_error" and not isinstance(first["ctx"]["error"], Unfit):
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        target = str(content.get("_target_") or next(iter(getattr(schema, "targets", ())), ""))
        made = target.rpartition(".")[2] if len(first["loc"]) == 1 else ""
        if made and getattr(schema, "knobs", None):  # which have no key that is unknown to the node
            key = _join(schema.group, own)  # type: ignore[attr-defined]
        return unknown_key(key, first["input"], known_keys(schema, first["loc"][:-1]), made)
    if first["type"] == "missing":
        return f"{key} has no value; give {key}=…"
    if first["type"] == "union_tag_not_found":
        return f"{key}.kind has no value; give {key}.kind=…"
    if first["type"] == "union_tag_invalid":
        kind, known = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "")
        near = did_you_mean(kind, known.split(", "), cutoff=0.5)
        hint = f"{near} " if near else ""
        return f"{key}.kind={kind} is unknown; {hint}kinds are {known}"
    # a value that may be of several types fails once for each
    same = [e["msg"] for e in error.errors() if _key(e["loc"], content) == own]
    accepted = " or ".join(map(in_words, same)).replace(" or must ", " or ")
    alone = _lacks_brackets(schema, first["loc"], content)
    hint = f": write {key}=[{first['input']}]" if alone else ""
    advice = hint or ": " in accepted
    null = " or null" if _may_be_null(schema, own) and not advice else ""
    return f"{key}={typed(first['input'])} {accepted}{null}{hint}"


def _may_be_null(schema: type[BaseModel], key: str) -> bool:
    """Whether a schema takes ``null`` for a dotted key."""
    annotation: Any = None
    for part in key.split("."):
        field = schema.model_fields.get(part)
        if field is None:
            return False
        annotation = field.annotation
        schema = next(iter(models_of(field)), BaseModel)
    return type(None) in get_args(annotation)


def _lacks_brackets(
    schema: type[BaseModel], loc: tuple[int | str, ...], content: dict[str, Any]
) -> bool:
    """Whether a list of the value there alone would be accepted."""
    changed = copy.deepcopy(content)
    node: Any = changed
    for part in loc:
        if isinstance(node, dict) and part in node:
            if isinstance(node[part], str | int | float):
                node[part] = [node[part]]
            node = node[part]
    if not isinstance(node, list):
        return False
    own = _key(loc, changed)
    try:
        schema.model_validate(changed)
    except ValidationError as error:
        return not any(_key(one["loc"], changed).startswith(own) for one in error.errors())
    return True


def unknown_key(key: str, value: Any, known: list[str], made: str = "") -> str:
    """Return the sentence for an unknown key, of a node that is no class or of the class ``made``
    that takes the known ones.
    """
    own = key.rpartition(".")[2]
    known = [name for name in known if name != "_target_"]
    near = did_you_mean(own, known, before=key.removesuffix(own))
    why, hint = f"there is no key {key}", f"; {near}"
    if made:
        why, hint = f"{made} takes {few(known) or 'nothing'}", f" ({near})"
    return f"{key}={typed(value)} is unknown: {why}{hint if near else ''}"


def known_keys(schema: type[BaseModel], loc: tuple[int | str, ...] = ()) -> list[str]:
    """Return the keys of the node at a location of a schema."""
    for part in loc:
        field = schema.model_fields.get(str(part))
        inner = models_of(field) if field else []
        if not inner:
            return []
        schema = inner[0]
    return [field.alias or name for name, field in schema.model_fields.items()]


def models_of(field: FieldInfo) -> list[type[Options]]:
    """Return the options models that a field may hold."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, Options)]


def accepted_values(field: FieldInfo) -> str:
    """Describe what a field accepts: ``levels | continuous``, ``integer ≥ 1``."""
    return _words(field.annotation, field.metadata)


def typed(value: Any) -> Any:
    """Return a value as it is typed in YAML and on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


_TYPES = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "null"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "a multiple of"}


_BOUNDS_IN_WORDS = {
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}


def _words(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        nested = [m for item in more for m in getattr(item, "metadata", [item])]
        return _words(inner, [*nested, *metadata])
    if get_origin(annotation) is Literal:
        return " | ".join(dict.fromkeys(map(str, get_args(annotation))))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_words(member, []) for member in get_args(annotation))
    if get_origin(annotation) is list:
        (inner,) = get_args(annotation)
        return f"[{_words(inner, [])}, …]"
    name = _TYPES.get(annotation, "node" if get_origin(annotation) or annotation is dict else "")
    name = name or getattr(annotation, "__name__", str(annotation))
    bounds = [
        f"{sign} {limit:g}" if limit < 1e6 else ""
        for constraint in metadata
        for short, sign in _BOUNDS.items()
        if (limit := getattr(constraint, short, None)) is not None
    ]
    return " ".join([name, ", ".join(filter(None, bounds))]).strip()


def in_words(text: str) -> str:
    """Turn pydantic's message into what a value must be."""
    message = re.sub(r"^((Input|String|List) should|Value error, must)", "must", text)
    message = message.replace(" after validation", "").replace("input", "value")
    message = re.sub(r"a valid dictionary( or .*)?$", "a node with keys", message)
    for theirs, plain in _BOUNDS_IN_WORDS.items():
        message = message.replace(theirs, plain)
    return message if "must" in message else f"is not possible: {message}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    return value.item() if getattr(value, "shape", None) == () else value


def _join(node: str, key: str) -> str:
    return ".".join(filter(None, [node, key]))


def _key(loc: tuple[int | str, ...], content: Any) -> str:
    """Return the dotted key of a location, without names of types."""
    parts: list[str] = []
    node: Any = content
    for part in loc:
        if isinstance(node, dict) and part in node:
            parts.append(str(part))
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int):
            parts[-1] += f"[{part}]"
            node = node[part]
    return ".".join(parts)


def _at(loc: tuple[int | str, ...], content: dict[str, Any]) -> dict[str, Any]:
    node: Any = content
    for part in loc:
        if isinstance(node, dict) and part in node:
            node = node[part]
    return node if isinstance(node, dict) else {}
