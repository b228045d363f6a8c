"""Load a model, and know its matrices again later."""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from palora.common.errors import InputError
from palora.common.files import headers, read_json
from palora.common.folders import check_unchanged, read_marker
from palora.common.hashes import fingerprint, hash_file, hash_value
from palora.common.progress import waiting
from palora.common.settings import Bits
from palora.common.threads import say_threads
from palora.language.prompts import set_chat
from palora.language.targets import find_targets, linear_layers, weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")

EXPERT = "expert.json"  # the marker of an expert's folder, whose weights lie in `model/`
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_model(
    path: str | Path,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    load: Bits | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer from a folder or a hub name.

    Args:
        path: a folder with `config.json` and safetensors weights, or a hub name.
        dtype: of the weights: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", …; by default the first GPU, or the CPU where there is none.
        revision: a branch, tag or commit of a hub model.
        load: "4bit" (NF4, its own constants quantised too, as QLoRA has it) or "8bit": quantise the weights of the
            linear layers by bitsandbytes.

    Returns:
        The model in evaluation mode, and the tokenizer with a padding token and left padding.

    Raises:
        InputError: there is no such model, no weights, no tokenizer, or it wants to run its own code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(path)
    check_source(path, dtype, device)
    device = chosen_device(device)
    say_threads(device)
    _check_sealed(Path(path))
    # A quantised model is made on its device, and stays there.
    quantised = {"quantization_config": _quantisation(load, dtype), "device_map": {"": device}} if load else {}
    with _loading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        set_chat(tokenizer)
    with _loading(path, "weights"), waiting(f"Loading {path}"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # of those the report tells, and so do we
            output_loading_info=True,
            **quantised,
        )
    # transformers only warns here, and goes on with random values.
    for wrong, names in (("lack", report["missing_keys"]), ("have another shape of", report["mismatched_keys"])):
        if names:
            name = sorted(str(n[0] if isinstance(n, tuple) else n) for n in names)[0]
            raise InputError(
                f"cannot load the weights of {path}: they {wrong} {name} ({len(names)} such); the checkpoint is "
                "damaged, or config.json is of another model"
            )
    if left := _left_out(model, report["unexpected_keys"]):
        raise InputError(
            f"cannot load the weights of {path}: config.json has no place for {left[0]} ({len(left)} such); it is of "
            "another model, with fewer layers"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {path} has neither a padding nor an end token; set one of them in it")
    tokenizer.padding_side = "left"
    if load:
        # Once, before bitsandbytes lays 4-bit weights out anew, which it does at the first answer on some CPUs.
        fingerprints(linear_layers(model), model)
    else:
        model.to(device)
    # cuDNN's attention, which torch prefers on an H100, gave NaN gradients after eight steps of bfloat16 on
    # Qwen2.5-0.5B with padded rows (torch 2.11); torch's own kernels did not.
    torch.backends.cuda.enable_cudnn_sdp(False)
    _check_finite(model, path)
    return model.eval(), tokenizer


def _quantisation(load: Bits, dtype: str) -> "BitsAndBytesConfig":
    """How bitsandbytes is to quantise. Raises InputError where it is not installed."""
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise InputError(f"load: {load} needs bitsandbytes: pip install 'palora[bitsandbytes]'")
    if load == "8bit":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it tells of every product
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def build_empty(path: str | Path, dtype: str = "auto") -> "PreTrainedModel":
    """A model of the same shapes and no numbers, on torch's meta device, from its configuration alone.

    Args:
        dtype: "auto" is the configuration's, float32 where it says none.

    Raises: InputError where there is no configuration, or it wants to run its own code.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(str(path), "configuration"):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        kind = (config.get_text_config().dtype or config.dtype or torch.float32) if dtype == "auto" else dtype
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, kind) if isinstance(kind, str) else kind, trust_remote_code=False
            )


def has_chat_template(path: str | Path) -> bool:
    """Whether a model is one to talk to; its tokenizer alone is loaded."""
    return bool(load_tokenizer(path).chat_template)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model alone. Raises InputError where there is none."""
    from transformers import AutoTokenizer

    with _loading(str(path), "tokenizer"):
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)


def chosen_device(device: str | None) -> str:
    """The device that was asked for; by default the first GPU, or the CPU where there is none."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def check_source(path: str, dtype: str = "auto", device: str | None = None) -> None:
    """What can be told of a model before it is loaded. Raises InputError, as `load_model` does."""
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(f"unknown dtype {dtype!r}; choose auto, float32, bfloat16 or float16")
    if Path(path).is_dir():
        _check_folder(Path(path))
    else:
        check_hub_name(path)
    if device and device.startswith("cuda:") and device != "cuda:0":
        raise InputError(f"choose the GPU by CUDA_VISIBLE_DEVICES={device[5:]} and leave --device out")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {device!r} here ({_one_line(error)}); leave --device out") from None


def check_hub_name(name: str) -> None:
    """Raise InputError where a name that is no folder here can be no model of the hub either. One request tells: the
    libraries would try file after file, six times each (72 s without a network)."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.file_download import get_hf_file_metadata

    folder, _, rest = name.partition("/")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (rest and Path(folder).is_dir()):
        raise InputError(f"{name}: no such model folder, and not a hub name (owner/name)")
    where = f"cannot load the model {name} (no such folder here, so it was looked for on the hub)"
    try:
        if try_to_load_from_cache(name, "config.json"):
            return
        if HF_HUB_OFFLINE:
            raise InputError(f"{where}: it is not in the cache, and HF_HUB_OFFLINE is set; check the path")
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except HFValidationError:
        raise InputError(f"{name}: no such model folder, and not a hub name (owner/name)") from None
    except HfHubHTTPError as error:
        raise InputError(f"{where}: {_one_line(error)}; check the name") from None
    except InputError:
        raise
    except Exception as error:  # of the network: httpx's, of no common type with Python's
        raise InputError(f"{where}: the hub cannot be reached ({_one_line(error)}); check the path") from None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        if list(folder.glob("*.bin")):
            raise InputError(
                f"{folder} has only pickled weights (*.bin), which are not read; convert them to safetensors"
            )
        raise InputError(f"{folder} has no weights (*.safetensors); is the folder complete?")
    _check_sizes(folder)


_SIDES = ("hidden_size", "intermediate_size", "vocab_size", "n_embd", "n_inner", "ffn_dim")  # of matrices
_KINDS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # of weights that are trained on


def _check_sizes(folder: Path) -> None:
    """What config.json describes is told from what the weights are before anything is made of it: a wrong number there
    would fill the memory, or take minutes (100,000 layers, 10⁸ words), and whole numbers be taken for weights."""
    try:
        config = read_json(folder / "config.json", "model_type")
        found = [header for file in sorted(folder.glob(WEIGHTS)) for header in headers(file)]
    except InputError:
        return  # told of when it is loaded
    if config.get("quantization_config"):
        return  # packed weights have kinds and sizes of their own
    another = "the checkpoint is damaged, or config.json is of another model"
    for name, kind, _ in found:
        if name.endswith("weight") and kind not in _KINDS:
            raise InputError(f"cannot load the weights of {folder}: {name} is stored as {kind}; {another}")
    limits = dict.fromkeys(_SIDES, max((side for *_, shape in found for side in shape), default=0))
    limits |= dict.fromkeys(("num_hidden_layers", "n_layer"), len(found))
    for part in (config, *(own for own in config.values() if isinstance(own, dict))):
        for key, limit in limits.items():
            if isinstance(value := part.get(key), int) and value > limit:
                said = f"{key} is {value:,}, more than these weights can have ({limit:,})"
                raise InputError(f"{folder / 'config.json'}: {said}; {another}")
    said = config.get("dtype") or config.get("torch_dtype")
    stored = {_KINDS[kind] for name, kind, shape in found if kind in _KINDS and len(shape) > 1}
    if isinstance(said, str) and stored and said not in stored:
        kinds = " and ".join(sorted(stored))
        log.warning(
            "%s says %s, and the weights are %s: say by --dtype what is meant", folder / "config.json", said, kinds
        )


def _check_sealed(folder: Path) -> None:
    """The weights of an expert lie in its stage's folder, whose marker knows what was written there."""
    marker = folder.parent / EXPERT
    if marker.is_file() and folder.is_dir():
        record = read_marker(folder.parent, EXPERT)
        inside = [name for name in record.get("files") or {} if name.startswith(f"{folder.name}/")]
        if inside:
            check_unchanged(folder.parent, record, *inside)


@contextmanager
def _loading(path: str, part: str) -> "Iterator[None]":
    """What transformers raises on a folder it cannot read has no common type: any of it is about the folder."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        where = path if Path(path).is_dir() else f"{path} (no such folder here, so it was looked for on the hub)"
        reason = _one_line(error).rstrip(".") + ("; is the folder complete?" if Path(path).is_dir() else "")
        if "trust_remote_code" in str(error):
            reason = "it brings Python code of its own, which is never run; use a model that transformers knows"
        raise InputError(f"cannot load the {part} of {where}: {reason}") from error


def _left_out(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Of the weights that a model did not take, those of a layer like its own: transformers would go on without it."""
    known = {re.sub(r"\d+", "*", name) for name, _ in model.named_parameters()}
    return sorted(name for name in unexpected if re.search(r"\.\d+\.", name) and re.sub(r"\d+", "*", name) in known)


def _one_line(error: Exception) -> str:
    """The first line of a message; all of it where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if not lines[0].endswith(":") else " ".join(lines)


def _check_finite(model: nn.Module, path: str) -> None:
    for name, parameter in model.named_parameters():
        # One sum finds NaN and infinity without a copy of the parameter. Quantised ones cannot hold them.
        if parameter.dtype in _FLOATS and not parameter.detach().sum(dtype=torch.float32).isfinite():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"{name} of {path} holds NaN or infinity in {kind}; the checkpoint is damaged")


REST = "*"  # the key of the fingerprint of everything that is not targeted
_KNOWN = "_palora_fingerprints"  # where a model keeps those of its parameters: each is hashed once a load


def checkpoint_activations(model: "PreTrainedModel", on: bool) -> None:
    """Whether layers in training keep their inputs alone for the gradient, and are run again for it: gradient
    checkpointing, or activation checkpointing, as newer versions of transformers call it."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{kind}_checkpointing"):
        getattr(model, f"{kind}_checkpointing_disable")()


def fingerprints(targets: dict[str, nn.Module], model: nn.Module | None = None) -> dict[str, str]:
    """One short hash per targeted matrix and, given the model, one of all its other parameters under `REST`: a model
    whose attention was fine-tuned is another model too."""
    known: dict[int, tuple[Tensor, int, str]] = {} if model is None else model.__dict__.setdefault(_KNOWN, {})

    def of(parameter: Tensor, module: nn.Module | None = None) -> str:
        seen, version, value = known.get(id(parameter), (None, 0, ""))
        if seen is not parameter or version != parameter._version:  # changed in place since
            value = fingerprint(parameter if module is None or parameter.is_floating_point() else weight(module))
            known[id(parameter)] = parameter, parameter._version, value
        return value

    prints = {name: of(module.weight, module) for name, module in targets.items()}  # type: ignore[arg-type]
    if model is not None:
        own = {id(p) for module in targets.values() for p in module.parameters()}
        others = [of(p) for _, p in sorted(model.named_parameters()) if id(p) not in own]
        prints[REST] = hash_value(others)[:16]
    return prints


def known_targets(
    model: nn.Module, expected: Mapping[str, str], what: str, model_name: str, targets: list[str] | None = None
) -> dict[str, nn.Module]:
    """The modules that `what` (an expert, a protection, an adapter) was made for, by path, in the model's order.

    Args:
        expected: the fingerprint of each of its matrices.
        targets: what the user has asked for; None: nothing.

    Raises: InputError unless `model` has every one of these matrices, unchanged, and `targets` names no others.
    """
    found = {name: module for name, module in linear_layers(model).items() if name in expected}
    for name in expected:
        if name not in found and name != REST:
            raise InputError(f"{what} was made for another model: {model_name} has no matrix {name}")
    for name, value in fingerprints(found, model).items():
        if value != expected.get(name, value):
            label = "what is not targeted" if name == REST else name
            raise InputError(
                f"{what} was made for other weights: {label} of {model_name} has fingerprint {value}, not "
                f"{expected[name]}; give the model it was made for, or make it anew for this one"
            )
    if targets and set(find_targets(model, targets)) != set(found):
        raise InputError(f"--targets names other matrices than those of {what}; leave --targets out")
    return found


def is_made_for(model: nn.Module, expected: Mapping[str, str]) -> bool:
    """Whether `model` is the one that these fingerprints are of."""
    try:
        known_targets(model, expected, "it", "the model")
    except InputError:
        return False
    return True


WEIGHTS = "*.safetensors"
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")  # tokenizer, template, processor, generation config


def whole_path(model: str) -> str:
    """A model folder by a path that holds wherever it is used from; a hub name as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def model_hash(path: str | Path) -> str:
    """What tells a model folder from others: the content of its weights and settings. Of a hub model: its name."""
    folder = Path(path)
    if not folder.is_dir():
        return hash_value(str(path))
    files = {file for pattern in (WEIGHTS, *_BESIDE) for file in folder.glob(pattern)}
    with waiting(f"Hashing {path}"):
        return hash_value([(file.name, hash_file(file)) for file in sorted(files)])


def save_model(model: "PreTrainedModel", source: str | Path, folder: Path) -> None:
    """Write a model, in its dtype, as a folder like the one it came from: with the tokenizer, chat template, generation
    config and processor of `source`, the folder or hub name it was loaded from, not as they were set for our use."""
    from transformers import AutoTokenizer

    model.save_pretrained(str(folder), safe_serialization=True)
    if not Path(source).is_dir():
        AutoTokenizer.from_pretrained(str(source), trust_remote_code=False).save_pretrained(str(folder))
        return
    for file in (file for pattern in _BESIDE for file in Path(source).glob(pattern)):
        written = folder / file.name
        if file.name not in ("config.json", "training.json") and not file.name.endswith(".index.json"):
            shutil.copy(file, written)
