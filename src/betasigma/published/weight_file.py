"""Weights that others wrote, in a file or a folder with configs, read without running anything in
them.

Zip archives of ``torch.save``, the older format before it, and safetensors. Nothing is unpickled
that could run code (``weights_only=True``), and sizes are checked before memory is taken: a file
cannot ask for more than it holds.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from betasigma.errors import UserError, few
from betasigma.runs.header import WEIGHTS

LARGEST_JSON = 2**20
"""Largest size in bytes of a config beside the weights; published ones have a few thousand."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored in. They are converted to float32."""


PERSISTENT = b"_reconstruct_persistent_obj"
"""Name in pickles of EDM and its relatives of what makes classes out of the source that they
carry."""


@dataclass(frozen=True)
class WeightFile:
    """What a file or a folder of weights holds.

    Attributes:
        path: as it was given.
        content: plain containers with tensors, as its writer nested them.
        files: those that the tensors are in.
        settings: plain content of JSON files beside the weights, by name without ``.json``.
        key: the config key that named it.
    """

    path: Path
    content: Any
    files: tuple[Path, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    key: str = "from"

    @property
    def named(self) -> str:
        """Key and path, as a sentence begins with them: ``from=model.pt``."""
        return f"{self.key}={self.path}"


def read_weights(file: Path, key: str = "from") -> Any:
    """Content of a file of weights, with tensors on the CPU and not yet in memory where the file
    can be mapped.
    """
    try:
        refuse_code(file, key)
        if file.suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            _check_archive(file, key)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        _check_old_file(file, key)
        return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{key}={file} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{key}={file} is not a whole safetensors file: {error}") from None
    except Exception:  # a foreign pickle may raise anything
        raise _not_plain(file, key) from None


def refuse_code(file: Path, key: str = "from") -> None:
    """Refuse a pickle with source code, by EDM's ``torch_utils.persistence``."""
    with file.open("rb") as stream:
        if PERSISTENT not in stream.read(2**16):
            return
    raise UserError(
        f"{key}={file} is a pickle of EDM, which carries code and would run it; where you trust it "
        f"and have EDM's code, scripts/import.py convert=edm from={file} code=EDM to=FOLDER writes "
        f"plain tensors, which {key}=FOLDER/{file.stem}.pt reads"
    )


def read_json(file: Path, key: str = "from") -> dict[str, Any]:
    """Content of a JSON file that holds one object."""
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise UserError(f"{key}={file} is larger than a config can be ({LARGEST_JSON} bytes)")
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{key}={file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{key}={file} is not a JSON object")
    return content


def checked_tensors(tensors: Mapping[Any, Any], source: WeightFile) -> dict[str, Tensor]:
    """The tensors by name, each dense and of floating point, together no larger than the files.

    Views of one another (a stride of 0) would take more memory than the file has; integers and
    sparse tensors are no weights.
    """
    left = sum(file.stat().st_size for file in source.files)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{source.named} has {name}, which is no tensor with a name")
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
            raise UserError(
                f"{source.named} has {name} of {tensor.dtype}, {tensor.layout}; weights must "
                f"be dense and one of {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
            )
        left -= tensor.numel() * tensor.element_size()
        if left < 0:
            raise UserError(
                f"{source.named} has {name} of shape {tuple(tensor.shape)}, with which its tensors "
                f"are larger than the file"
            )
    return dict(tensors)


def checked_averages(
    averages: Any, raw: Mapping[str, Tensor], source: WeightFile
) -> dict[str, Tensor]:
    """Averages of the weights ``raw``, by the same names and of the same shapes."""
    if not isinstance(averages, dict) or averages.keys() != raw.keys():
        raise UserError(f"{source.named} has averages of other weights than its own")
    checked = checked_tensors(averages, source)
    for name, value in checked.items():
        if value.shape != raw[name].shape:
            raise UserError(f"{source.named} has an average of {name} of another shape")
    return checked


def _check_archive(file: Path, key: str) -> None:
    """Refuse an archive whose entries are compressed: ``torch.save`` compresses nothing, and one
    could take more memory than the file's size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError):
        raise UserError(f"{key}={file} is damaged or cut short") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _not_plain(file, key)


def _check_old_file(file: Path, key: str) -> None:
    """Refuse a file of the format before PyTorch 1.6 whose storages claim more than it holds."""
    with file.open("rb") as stream:
        for _ in range(4):  # magic number, protocol, system, content
            reader = _StorageReader(stream, encoding="utf-8")
            reader.load()
    if sum(reader.storages.values()) > file.stat().st_size:
        raise UserError(f"{key}={file} claims more numbers than it holds")


class _Placeholder(dict[Any, Any]):
    """Stands for whatever a pickle makes or calls, and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _StorageReader(pickle._Unpickler):
    """Reads a pickle for the storages that it names, and imports nothing.

    It is the one in Python, whose memo is a dictionary: that of C would make room for any number of
    entries.

    Attributes:
        storages: number of elements by key.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.storages: dict[Any, int] = {}

    def find_class(self, module: str, name: str) -> type[_Placeholder]:
        return _Placeholder

    def persistent_load(self, pid: Any) -> None:
        _, _, storage, _, elements, *_ = pid
        self.storages[storage] = max(int(elements), self.storages.get(storage, 0))


def _not_plain(file: Path, key: str) -> UserError:
    return UserError(
        f"{key}={file} holds something else than tensors and plain containers, or is damaged; "
        f"nothing in it was executed"
    )


CONFIGS = ("config", "scheduler_config")
"""JSON files that a folder may have beside its weights."""


USUAL = "diffusion_pytorch_model"
"""Name of diffusers' files of weights; ``diffusion_pytorch_model.fp16``, say, is a variant."""


def open_weights(path: Path, key: str = "from") -> WeightFile:
    """Open a file of weights, or a folder that has one.

    Of a folder, ``unet`` and ``scheduler`` are looked at too: diffusers' pipelines keep the parts
    of a model there.
    """
    if not path.exists():
        raise UserError(f"{key}={path} does not exist; give a file or a folder of weights")
    if path.is_file():
        return WeightFile(path, read_weights(path, key), (path,), key=key)
    folders = [folder for folder in (path / "unet", path, path / "scheduler") if folder.is_dir()]
    files = _weights_in(folders, path, key)
    content = read_weights(files[0], key)
    for file in files[1:]:
        more = read_weights(file, key)
        if not (isinstance(content, dict) and isinstance(more, dict)):
            raise UserError(f"{key}={file} is no part of a model: it holds no tensors by name")
        content |= more
    settings = {}
    for name in CONFIGS:
        beside = [folder / f"{name}.json" for folder in folders]
        found = next((file for file in beside if file.is_file()), None)
        if found is not None:
            settings[name] = read_json(found, key)
    return WeightFile(path, content, files, settings, key)


def _weights_in(folders: list[Path], path: Path, key: str) -> tuple[Path, ...]:
    for folder in folders:
        for ending in WEIGHTS:
            files = sorted(folder.glob(f"*{ending}"))
            usual = folder / f"{USUAL}{ending}"
            if usual in files:  # beside others in half precision, say
                return (usual,)
            index = folder / f"{usual.name}.index.json"
            if index.is_file():
                return _indexed(index, ending, key)
            if len(files) > 1:
                raise UserError(
                    f"{key}={path} has several files of weights ({', '.join(f.name for f in files)}"
                    f"): give the path of one"
                )
            if files:
                return (files[0],)
    raise UserError(
        f"{key}={path} has no weights ({', '.join(WEIGHTS)}); give a file of weights, or a folder "
        f"with one"
    )


def _indexed(index: Path, ending: str, key: str) -> tuple[Path, ...]:
    """The files of one model, which an index beside them names, tensor by tensor."""
    names = read_json(index, key).get("weight_map")
    named = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    inside = all(name.endswith(ending) and Path(name).name == name for name in named)
    files = tuple(index.with_name(name) for name in named) if inside else ()
    if not files or not all(file.is_file() for file in files):
        raise UserError(
            f"{key}={index} must name {ending} files beside it under weight_map; it names "
            f"{few(named) or 'none'}"
        )
    return files
