"""How much depends on a model: what the cards of its packages say."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import PackageInvalid
from gateway.flags.document import MODEL_PATTERN
from gateway.models import manifest

LOW, HIGH = "low", "high"


def stakes_are_high(models_dir: Path, model: str) -> bool:
    """Whether the card of any version on the disk says so; blocks on the disk.

    Any version and not only the one that gains traffic: a new version without a card must not be the way around. For
    the same reason a manifest that cannot be read, and a word that is not "low", count as high. No card means low.
    """
    if not MODEL_PATTERN.fullmatch(model):
        return True
    return any(_says_high(path) for path in sorted(models_dir.glob(f"{model}/*/{manifest.MANIFEST_FILE}")))


def _says_high(path: Path) -> bool:
    try:
        card = manifest.parse(path.read_bytes(), where=str(path)).card
    except FileNotFoundError:  # taken away just now
        return False
    except (PackageInvalid, OSError):
        return True
    return bool(card.get("stakes", LOW) != LOW)
