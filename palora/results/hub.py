"""An adapter on the Hugging Face Hub: its weights, its configuration and its card, in a repository that is private
unless said otherwise.

Token, name and network are checked before any work is done. What is sent is said, and is no more than the four files of
`SENT`: not the facts as they were taught (`teach.jsonl`), and no path of this machine.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palora.common.errors import InputError, PaloraError
from palora.common.files import read_json, write_json
from palora.common.folders import check_unchanged, seal
from palora.common.progress import waiting
from palora.results.model_card import model_card, public_name
from palora.results.updates import MARKER, read_record

log = logging.getLogger("palora")

SENT = ("adapter_config.json", "adapter_model.safetensors", MARKER, "README.md")


def check_push(name: str) -> str:
    """The whole name of the repository, `owner/name`.

    Raises: InputError in one line where the name is none, there is no token or it cannot write there, or the Hub cannot
    be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise InputError(f"--push-to-hub {name}: no name of a repository; write OWNER/NAME or NAME") from None
    if HF_HUB_OFFLINE:
        raise InputError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave --push-to-hub out")
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise InputError("--push-to-hub needs a token of the Hub: hf auth login, or HF_TOKEN") from None
    except Exception as error:  # of the network or a wrong token, of no common type
        raise InputError(
            f"--push-to-hub: the Hub does not let us in ({_reason(error)}); check token and network"
        ) from None
    own = user["name"]
    owner, _, rest = name.rpartition("/")
    if owner and owner not in (own, *(group["name"] for group in user.get("orgs") or [])):
        raise InputError(f"--push-to-hub {name}: {own} is not {owner}, nor of an organisation of that name")
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise InputError("--push-to-hub: the token can only read; make one that can write")
    return f"{owner or own}/{rest}"


def push(adapter: Path, repository: str, evaluation: Mapping[str, Any] | None = None, public: bool = False) -> str:
    """Upload an adapter with its card.

    Args:
        adapter: a folder that `palora inject`, `run` or `export` wrote.
        repository: as `check_push` gives it.
        evaluation: of its run, for the card's tables.

    Returns: the address of the upload. Raises: PaloraError where the Hub takes nothing.
    """
    from huggingface_hub import HfApi

    record = read_record(adapter, "model", "facts", "update")
    check_unchanged(adapter, record, "adapter_model.safetensors", "adapter_config.json")
    api, seen = HfApi(), "public" if public else "private unless it is there already and public"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _gather(adapter, folder, record, evaluation)
        sizes = {name: (folder / name).stat().st_size for name in SENT}
        told = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items())
        log.info("sent to https://huggingface.co/%s (%s): %s", repository, seen, told)
        try:
            with waiting("Uploading", after=0):
                api.create_repo(repository, private=not public, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repository,
                    folder_path=str(folder),
                    allow_patterns=list(SENT),
                    commit_message="LoRA adapter by palora",
                )
        except Exception as error:  # of the network, of no common type
            raise PaloraError(
                f"the upload to {repository} failed ({_reason(error)}); the adapter is in {adapter}: palora export "
                f"--adapter {adapter} --out DIR --push-to-hub {repository} tries again"
            ) from None
    return str(getattr(done, "commit_url", done))


def run_evaluation(adapter: Path) -> dict[str, Any] | None:
    """The evaluation of the run that an adapter lies in (RUN/adapter, RUN/arms/NAME/adapter); None where there is
    none."""
    places = [adapter.absolute().parent, *adapter.absolute().parents[2:3]]
    found = [place / "evaluation.json" for place in places if (place / "evaluation.json").is_file()]
    return read_json(found[0], "arms") if found else None


def _gather(adapter: Path, folder: Path, record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
    """What is sent, in a folder: paths of this machine are cut to their last part."""
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes((adapter / weights.name).read_bytes())
    config = read_json(adapter / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": public_name(record["model"])})
    (folder / "README.md").write_text(model_card(record, evaluation), encoding="utf-8")
    shown = {key: value for key, value in record.items() if key not in ("inputs", "files")}
    shown |= {key: public_name(record[key]) for key in ("model", "protection") if record.get(key)}
    if "combined" in shown:
        shown["combined"] = {key: value for key, value in shown["combined"].items() if key != "out"}
    seal(folder, MARKER, shown)


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
