"""What is installed: the wheel, its program, what it declares, what ``import betasigma`` shows."""

from __future__ import annotations

import ast
import os
import pty
import select
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pytest
from launching import HEAVY, ROOT, TINY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import betasigma
from betasigma.errors import UserError
from betasigma.launch.cli import main
from betasigma.schedules import VarianceExploding, VariancePreserving

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


# ---------------------------------------------------------------- import betasigma


def test_the_notebook_s_names_are_there_and_cost_nothing_until_they_are_used() -> None:
    code = (
        "import sys, betasigma; names = dir(betasigma); "
        f"print([m for m in {[*HEAVY, 'hydra', 'pydantic']} if m in sys.modules], "
        "sorted({n for n in names if n[:1] != '_'} ^ set(betasigma.__all__)))"
    )
    assert ran(sys.executable, "-c", code).stdout == "[] []\n"


@pytest.mark.parametrize("name", betasigma.__all__)
def test_a_name_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(betasigma, name)
    assert found.__name__.rpartition(".")[2] == name
    if isinstance(found, ModuleType):
        return
    assert getattr(import_module(found.__module__), name) is found


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(betasigma.__file__).read_text("utf-8"))
    homes = {
        alias.asname: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert homes == {name: f"betasigma.{home}" for name, home in betasigma._HOMES.items()}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Denoisr'"):
        betasigma.Denoisr  # noqa: B018


# ---------------------------------------------------------------- declared = imported


def imported(*roots: Path) -> set[str]:
    """Top-level packages that Python files import, or read files of (``find_spec("sklearn")``), the
    standard library's and ours left out.
    """
    files = [f for root in roots for f in ([root] if root.is_file() else root.rglob("*.py"))]
    local = {f.stem for f in files} | {f.parent.name for f in files} | {"betasigma"}
    names = set().union(*map(imported_by, files))
    return names - local - set(sys.stdlib_module_names)


@cache
def imported_by(file: Path) -> set[str]:
    """The same of one file, with all that it imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "find_spec":
            named = [a.value for a in node.args if isinstance(a, ast.Constant)]
            names |= {str(name).partition(".")[0] for name in named}
    return names


def declared(*extras: str) -> set[str]:
    """Distributions that the project requires, with those of the extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found |= declared(*requirement.extras)
        else:
            found.add(canonicalize_name(requirement.name))
    return found


packages_distributions = cache(metadata.packages_distributions)


def distributions(packages: Iterable[str]) -> dict[str, set[str]]:
    """Which distributions a package can come from: the installed ones, else that of its name."""
    known = packages_distributions()
    return {name: {canonicalize_name(d) for d in known.get(name, [name])} for name in packages}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("src", "scripts", "train.py"), ("export", "dashboard")),
        (("examples",), ("demo",)),
        (("benchmarks",), ("bench",)),
        (("tests", "examples", "benchmarks"), ("dev", "bench")),
    ],
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    needed = imported(*(ROOT / folder for folder in folders))
    assert len(needed) > 5
    known = declared(*extras)
    missing = {name for name, homes in distributions(needed).items() if not homes & known}
    assert not missing


CHOSEN_BY_NAME = {
    "hydra-submitit-launcher": "hydra/launcher: submitit_slurm",
    "hydra-optuna-sweeper": "hydra/sweeper=optuna",
    "hydra-joblib-launcher": "hydra/launcher=joblib",
    "tensorboard": "logger=tensorboard",
}
"""What a config or a command line names instead of importing it, and how."""

HELD_BACK = {"sqlalchemy": "optuna"}
"""What is declared to keep out versions that a package which needs it does not work with."""


def test_what_is_declared_is_imported_or_named() -> None:
    used = set().union(*distributions(imported(ROOT / "src")).values())
    texts = [p.read_text("utf-8") for p in [*ROOT.glob("conf/**/*.yaml"), ROOT / "README.md"]]
    named = {name for name, words in CHOSEN_BY_NAME.items() if any(words in t for t in texts)}
    assert declared("tensorboard", "search") <= used | named | HELD_BACK.keys()


@pytest.mark.parametrize(("name", "needed_by"), HELD_BACK.items())
def test_what_is_held_back_is_needed(name: str, needed_by: str) -> None:
    lines = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    (own,) = (r for r in map(Requirement, lines) if r.name == name)
    assert [bound.operator for bound in own.specifier] == ["<"]
    assert name in {canonicalize_name(Requirement(r).name) for r in metadata.requires(needed_by)}


def test_the_constraints_are_versions_that_the_project_accepts() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    everything = [*PROJECT["dependencies"]]
    everything += [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    asked = [Requirement(line) for line in everything]
    others = [r for r in asked if r.name != PROJECT["name"]]
    assert len(others) > 25
    for requirement in others:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {betasigma.__version__}\n" in citation
    assert f"\n## [{betasigma.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


# ---------------------------------------------------------------- the program


def ran(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_without_a_command_the_commands_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ran(sys.executable, "-m", "betasigma", "--help")
    assert shown.returncode == 0
    for name in ("train", "sample", "edit", "evaluate", "compare"):
        assert f"\n  {name} " in shown.stdout
    for words, told in (
        ([], shown.stdout),
        (["--version"], f"betasigma {betasigma.__version__}\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["betasigma", *words])
        main()
        assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "trian",
            "trian is no command of betasigma; did you mean train? choose from train,",
        ),
        ("xyzzy", "xyzzy is no command of betasigma; choose from train, sample, edit, evaluate,"),
        ("steps=3", "steps=3 belongs behind a command: betasigma train steps=3"),
        ("-m", "-m belongs behind a command: betasigma train -m"),
    ],
)
def test_a_word_that_is_no_command_is_refused_in_one_sentence(
    word: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["betasigma", word])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}")
    assert told.count("\n") == 1


# ---------------------------------------------------------------- installed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which the wheel has been installed, without its dependencies."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    offline = ("--no-deps", "--no-index")
    made = ran(*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(ROOT))
    assert made.returncode == 0, made.stderr
    (wheel,) = wheels.glob("betasigma-*.whl")
    done = ran(*pip, "install", *offline, "--target", str(target), str(wheel))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def shell(installed: Path) -> dict[str, str]:
    """Environment in which that is what ``betasigma`` and ``import betasigma`` mean."""
    path = os.pathsep.join([str(installed / "bin"), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(installed), "PATH": path}


def test_the_wheel_carries_the_whole_config_tree(installed: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.yaml")}

    assert files(installed / "betasigma" / "conf") == files(ROOT / "conf")


def test_it_composes_from_an_empty_directory(
    tmp_path: Path, installed: Path, shell: dict[str, str]
) -> None:
    where = "import betasigma.config_tree as t; print(t.conf_directory())"
    found = ran(sys.executable, "-c", where, cwd=tmp_path, env=shell)
    assert found.stdout == f"{installed / 'betasigma' / 'conf'}\n"
    shown = ran(
        "betasigma",
        "train",
        "--cfg",
        "job",
        "model=ncsn",
        "sigma.levels=7",
        cwd=tmp_path,
        env=shell,
    )
    assert shown.returncode == 0, shown.stderr
    assert "levels: 7" in shown.stdout
    assert "== Groups ==" in ran("betasigma", "train", "--help", cwd=tmp_path, env=shell).stdout
    assert list(tmp_path.iterdir()) == []


def test_the_clone_s_train_py_runs_from_any_directory(tmp_path: Path) -> None:
    shown = ran(sys.executable, str(ROOT / "train.py"), "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "batch_size: 128" in shown.stdout


@pytest.mark.slow
def test_it_trains_on_two_processes_and_samples(tmp_path: Path, shell: dict[str, str]) -> None:
    two = ("hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2")
    done = ran("betasigma", "train", *TINY, *two, cwd=tmp_path, env=shell)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    environment = (run / "environment.json").read_text("utf-8")
    assert '"betasigma",\n    "train",' in environment
    drawn = ran("betasigma", "sample", f"run={run}", "n=3", cwd=tmp_path, env=shell)
    assert drawn.returncode == 0, drawn.stderr
    assert len(list(tmp_path.glob("outputs/*_sample_*/samples.npz"))) == 1


BARE = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}
"""Options by which a shell reads nobody's settings."""


class Terminal:
    """A shell at a terminal."""

    def __init__(self, shell: str, environment: dict[str, str], cwd: Path) -> None:
        master, slave = pty.openpty()
        self.master = master
        self.process = subprocess.Popen(
            [shell, *BARE[shell], "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "PS1": "$ ", "TERM": "dumb"},
            cwd=cwd,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, keys: str, until: str) -> str:
        """Type ``keys``; returns what the terminal shows as soon as that has ``until``."""
        os.write(self.master, keys.encode())
        shown, end = "", time.monotonic() + 60
        while until not in shown and time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                shown += os.read(self.master, 65536).decode(errors="replace")
        assert until in shown, shown
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture(params=["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def terminal(
    request: pytest.FixtureRequest, tmp_path: Path, shell: dict[str, str]
) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    opened = Terminal(request.param, shell, tmp_path)
    if request.param == "zsh":
        bridge = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit"
        opened.type(f'{bridge}; echo brid""ged\n', "bridged")
    yield opened
    opened.close()


@pytest.mark.slow
def test_shells_complete_commands_groups_and_keys(terminal: Terminal) -> None:
    terminal.type('eval "$(betasigma train -sc install=bash)"; echo rea""dy\n', "ready")
    terminal.type("betasigma tra\t", "betasigma train")
    terminal.type(" data=fash\t", "data=fashion_mnist")
    terminal.type(" model=ncsn sigma.lev\t", "sigma.levels=")
    terminal.type("5 schedule=cos\t", "schedule=cosine")
    terminal.type("\x15betasigma evaluate likelihood=fl\t", "likelihood=flow")


# ---------------------------------------------------------------- load


def test_load_takes_the_best_checkpoint_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, family in (("last", "ddpm"), ("best", "ncsn")):
        (folder / f"{name}.ckpt").write_bytes((ROOT / f"tests/frozen/{family}.ckpt").read_bytes())
    last, best = betasigma.load(tmp_path), betasigma.load(tmp_path, which="best", device="cpu")
    assert isinstance(last[0].schedule, VariancePreserving)
    assert isinstance(best[0].schedule, VarianceExploding)
    assert isinstance(best[0], betasigma.Denoiser)
    assert isinstance(best[1], betasigma.Sampler)
    (folder / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"has no checkpoints/last\.ckpt"):
        betasigma.load(tmp_path)
    with pytest.raises(UserError, match="which=best chooses among a run directory's checkpoints"):
        betasigma.load(ROOT / "tests/frozen/ddpm.ckpt", which="best")
    with pytest.raises(UserError, match=r"^which=bestt must be last or best$"):
        betasigma.load(tmp_path, which="bestt")  # type: ignore[arg-type]
