"""Checkpoints on disk: find a folder or download it, check its files, count its weights."""

import errno
import hashlib
import json
import math
import os
import re
from pathlib import Path

OFFICIAL = "microsoft/Phi-3-vision-128k-instruct"
#: The commit of `OFFICIAL` that is loaded by default, so that later changes on the hub change nothing here.
OFFICIAL_REVISION = "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed"
#: Numbers of parameters of checkpoints on the hub, to say before the download whether they would fit into memory.
PARAMETERS = {OFFICIAL: 4_146_621_440, "microsoft/Phi-3.5-vision-instruct": 4_146_621_440}
POCKET = Path(__file__).resolve().parent.parent / "checkpoints" / "phi-3-vision-pocket"
SUMS = "SHA256SUMS"
#: The suffixes of the files that are read in a checkpoint's folder.
READ = (".json", ".safetensors", ".jinja")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


class CheckpointError(OSError):
    """A checkpoint is missing, incomplete or changed; the message names the file and the fix."""


class NotDownloadedError(CheckpointError):
    """Nothing of the hub's checkpoint is on this machine, and the hub was not reached."""


def checkpoint_name(checkpoint=None) -> str:
    """The folder or hub name that `load_model_and_processor(checkpoint)` would take."""
    return str(checkpoint or os.environ.get("PHI3_VISION_CHECKPOINT") or POCKET)


def find_checkpoint(checkpoint=None, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Return the folder that holds the checkpoint, downloading it if `checkpoint` is the name of a hub repository.

    The default revision is `OFFICIAL_REVISION` for `OFFICIAL`, and the newest for other repositories.

    Raises:
        CheckpointError: it cannot be found or downloaded, or is not a Phi-3-vision checkpoint.
    """
    name = checkpoint_name(checkpoint)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder == POCKET:
        raise CheckpointError(
            "The bundled checkpoint checkpoints/phi-3-vision-pocket is missing; clone the repository again "
            "and install it with `pip install -e .`, or pass checkpoint=helpers.OFFICIAL."
        )
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder {name}; check the path, or leave checkpoint out.")
    return _download(name, revision, local_files_only)


def verify_checksums(folder: Path) -> bool:
    """Compare a folder's files with its SHA256SUMS; False if it has none.

    Raises:
        CheckpointError: a file is missing or differs, one that would be read is not listed, or the list is damaged.
    """
    sums = Path(folder) / SUMS
    if not sums.is_file():
        return False
    fix = "restore it with `git checkout -- checkpoints`, or download it again"
    *lines, rest = sums.read_bytes().decode("utf-8", "replace").split("\n")
    for line in lines:
        entry = _SUM_LINE.fullmatch(line)
        if entry is None:
            raise CheckpointError(f"{sums} is damaged; {fix}.")
        file = sums.with_name(entry[2])
        if not file.is_file():
            raise CheckpointError(f"{file} is missing but listed in {SUMS}; {fix}.")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry[1]:
                raise CheckpointError(f"{file} has changed: its hash is not the one in {SUMS}; {fix}.")
    if rest or not lines:
        raise CheckpointError(f"{sums} is damaged; {fix}.")
    listed = {line[66:] for line in lines}
    for file in sorted(sums.parent.iterdir()):
        if file.suffix in READ and file.name not in listed:
            raise CheckpointError(f"{file} is not listed in {SUMS}; remove it, or take another folder.")
    return True


def count_parameters(folder: Path) -> int:
    """The number of weights in a folder's safetensors files, read from their headers.

    Raises:
        CheckpointError: there are none, some are missing, or a header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    index_file = folder / "model.safetensors.index.json"
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        names = ["model.safetensors"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index_file} is damaged; download it again.") from None
    total = 0
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as weights:
                total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} lacks {name}; download it again, which adds what is missing (only safetensors are read)."
            ) from None
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); download it again.") from None
    return total


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    where = f"{name} at revision {revision}" if revision else name
    tried = "asked" if local_files_only else "reached"
    try:
        # One call for all files; without the hub it takes them from the local cache.
        folder = snapshot_download(
            name,
            revision=revision or (OFFICIAL_REVISION if name == OFFICIAL else None),
            allow_patterns=["*.json", "*.safetensors"],
            local_files_only=local_files_only,
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:  # the second by releases before 2
        half = hasattr(error, "snapshot_path")  # an IncompleteSnapshotError, which older releases lack
        kind, state = (CheckpointError, "only half downloaded") if half else (NotDownloadedError, "not on this machine")
        raise kind(
            f"{where} is {state} and the hub was not {tried}; connect to the internet and unset HF_HUB_OFFLINE to "
            "download it once (what is there is kept), or leave checkpoint out to use the bundled one."
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{where} asks for a login; run `hf auth login` first.") from None
    except HfHubHTTPError as error:
        raise CheckpointError(f"The hub has no {where} ({_reason(error)}); check the name and the revision.") from None
    except Exception as error:  # httpx's are not OSErrors, and hf_xet raises RuntimeError even for a full disk
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise CheckpointError(
                f"The disk is full: {where} does not fit. Free some space, or set HF_HOME to a larger disk."
            ) from None
        raise CheckpointError(f"Downloading {where} failed ({_reason(error)}); try again.") from None
    return _checked(Path(folder))


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _checked(folder: Path) -> Path:
    """The folder, if its config.json is that of a Phi-3-vision checkpoint."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no config.json; pass the folder that does.") from None
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{folder / 'config.json'} is damaged; download it again.") from None
    if kind != "phi3_v":
        raise CheckpointError(f"{folder} holds a model of type {kind}, not phi3_v; pass another folder.")
    return folder
