"""Words of a command line in any order, and what Hydra is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from betasigma.errors import UserError
from betasigma.launch.command_line import quoted, read_command_line
from betasigma.launch.overrides import as_choice, as_typed


@pytest.mark.parametrize(
    ("typed", "overrides", "options"),
    [
        ("model=ncsn -m seed=1,2", ["model=ncsn", "seed=1,2"], {"multirun": True}),
        ("seed=1 --cfg job steps=3", ["seed=1", "steps=3"], {"cfg": "job"}),
        ("-cn mine seed=1 -cd here steps=2", ["seed=1", "steps=2"], {"config_name": "mine"}),
        ("--info seed=1", ["seed=1"], {"info": "all"}),
        ("seed=1 --info defaults steps=2", ["seed=1", "steps=2"], {"info": "defaults"}),
        ("--optimizer.lr=0.001 --seed=3", ["optimizer.lr=0.001", "seed=3"], {}),
        ("--run=outputs/a n=4", ["run=outputs/a", "n=4"], {"run": False}),
        ("--package=hydra -c all", [], {"package": "hydra", "cfg": "all"}),
    ],
)
def test_hydra_s_parser_takes_the_words(
    typed: str, overrides: list[str], options: dict[str, object]
) -> None:
    parsed = get_args_parser().parse_args(read_command_line(typed.split()).words())
    assert parsed.overrides == overrides
    assert {name: getattr(parsed, name) for name in options} == options


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--steps 100", "--steps 100 is two words: write --steps=100 or steps=100"),
        ("--steps", "--steps has no value: write --steps=… or steps=…"),
        ("-x", "-x is unknown"),
        ("--cfg steps=3", "--cfg needs one of job, hydra, all, for example --cfg=job"),
        ("--config-dir", "--config-dir needs a value"),
        ("-m --cfg job", "--multirun and --cfg ask for different things"),
    ],
)
def test_one_sentence_for_an_option_that_cannot_be_read(typed: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        read_command_line(typed.split())
    assert str(refused.value).startswith(sentence)


def test_the_path_of_a_sweep_s_job_needs_no_quotes(here: Path) -> None:
    job = here / "lr=0.001,ema.decay=0.9"
    job.mkdir()
    (word,) = read_command_line([f"resume={job.name}"]).overrides
    assert OverridesParser.create().parse_override(word).value() == job.name
    assert read_command_line(["run=a=1,b"]).overrides == ["run=a=1,b"]  # no such path: as typed


@pytest.mark.parametrize("value", ["ü", "outputs/l\u0308/ein Lauf", "~/データ", "1e\u22123"])
def test_letters_beyond_ascii_need_no_quotes(value: str) -> None:
    (word,) = read_command_line([f"name={value}"]).overrides
    assert OverridesParser.create().parse_override(word).value() == value
    assert read_command_line([f"name='{value}'"]).overrides == [f"name='{value}'"]


@pytest.mark.parametrize("value", ["plain", "it's", "a\\'b", "a,b=c [d]"])
def test_what_is_quoted_comes_back(value: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


@pytest.mark.parametrize("value", ["3", "null", "NULL", "", "[1,2]", "a b", "1,2", "choice(1,2)"])
def test_a_value_of_a_sweep_is_one_that_hydra_takes(value: str) -> None:
    word = f"training.clip={value}"
    (parsed,) = OverridesParser.create().parse_overrides([as_choice(word)])
    assert parsed.key_or_group == "training.clip"
    assert as_typed(as_choice(word)) == word
