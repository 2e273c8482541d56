"""Which code the jobs of a sweep run: a copy of what was submitted, or the clone itself."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.types import HydraContext

from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.options.hardware import CodeSource
from betasigma.runs.directory import COMMIT, git_state, short
from betasigma.runs.files import new_folder, write_json
from betasigma.runs.sweep_record import read_sweep

SNAPSHOT, UNCHANGED, LIVE = get_args(CodeSource)

CODE = "code"
"""Folder of a sweep directory with the copies."""

PACKAGE = Path(__file__).resolve().parents[1]
PLUGIN = PACKAGE.parent / "hydra_plugins" / "betasigma_sweeps.py"

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def keep_code(sweep: Path, source: str) -> dict[str, Any]:
    """Keep the code of a sweep's jobs, as asked. Return for the sweep's record where jobs take it
    from, its digest, and commit, branch and changed files.
    """
    found = {"from": source, "digest": digest_of_code(), **(git_state(PACKAGE) or {})}
    if source != SNAPSHOT:
        return found
    copy = sweep.resolve() / CODE / found["digest"]
    if not copy.is_dir():
        with new_folder(copy) as folder:
            for name, path in _parts().items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=LEFT_OUT)
                else:
                    shutil.copyfile(path, target)
            write_json(folder / COMMIT, git_state(PACKAGE) or {})
    return {**found, "path": str(copy)}


def digest_of_code() -> str:
    """A digest of every file of the code and the configs: of this package, and of outside packages
    that were let in and are not installed.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_parts().items()):
        for file in sorted(_files(path)):
            digest.update(f"{name}/{file.relative_to(path)}".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def refuse_changed(run: Path) -> None:
    """Refuse to start a job on other code than was submitted, where ``cluster.code=unchanged``."""
    record = read_sweep(run.parent)
    code = (record.code if record else None) or {}
    if code.get("from") == UNCHANGED and code.get("digest") != digest_of_code():
        raise UserError(
            f"the code has changed since this sweep was submitted (commit "
            f"{str(code.get('commit'))[:10]}), and cluster.code=unchanged starts no job on other "
            f"code: put it back, or submit what is left with -m resume={short(run.parent)}"
        )


def from_copy(context: HydraContext, copy: Path) -> HydraContext:
    """The context that composes configs, which it reads from the copy instead of the clone."""
    loader, inside = context.config_loader, copy / "src" / "betasigma" / "conf"
    conf = inside if inside.is_dir() else copy / "conf"
    clone, path = str(conf_directory()), ConfigSearchPathImpl()
    for source in loader.get_search_path().get_path():
        where = str(source.path)
        if where.removeprefix("file://").startswith(clone):
            where = where.replace(clone, str(conf), 1)
        path.append(str(source.provider), where)
    return HydraContext(ConfigLoaderImpl(path), context.callbacks)


def _parts() -> dict[str, Path]:
    """The parts of a copy, and where they are copied from."""
    parts = {"src/betasigma": PACKAGE, "src/hydra_plugins/betasigma_sweeps.py": PLUGIN}
    conf = conf_directory()
    if not conf.is_relative_to(PACKAGE):
        parts["conf"] = conf
    for name in plugins.allowed():
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if "site-packages" not in Path(folder).parts:
                parts[f"src/{name}"] = Path(folder).resolve()
    return parts


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            yield file
