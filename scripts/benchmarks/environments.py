"""Virtual environments of the peers, made on first use, so that no peer's pins bind another's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["PINS", "interpreter"]

# torch as Heliotrope has it, so that kernels are the same for all.
PINS: dict[str, tuple[str, ...]] = {
    "bare": ("torch==2.13.0", "numpy==2.4.6"),
    "pfl": ("torch==2.13.0", "numpy==2.4.6", "pfl==0.6.0"),
    # Not flwr[simulation]: that extra pins an older Ray, and pip answers with an ancient flwr.
    "opacus": ("torch==2.13.0", "numpy==2.4.6", "opacus==1.6.0"),
    "ray_train": ("torch==2.13.0", "numpy==2.4.6", "ray[train]==2.60.0"),
    "lightning": ("torch==2.13.0", "numpy==2.4.6", "lightning==2.6.6"),
    "flower": ("torch==2.13.0", "numpy==2.4.6", "flwr==1.41.0", "ray==2.60.0"),
}


def interpreter(peer: str, folder: Path) -> Path:
    """Return the Python of `peer`'s environment in `folder`, made if it is not there yet."""
    home = folder / peer
    python, stamp = home / "bin" / "python", home / "pins"
    wanted = "\n".join(PINS[peer])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making the environment of {peer} in {home}: {' '.join(PINS[peer])}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*install, *PINS[peer]], check=True)
    stamp.write_text(wanted)
    return python
