"""Make tests/unit/byzfl_vectors.json: what byzfl's rules and attacks make of few vectors.

    python scripts/vendor/byzfl_vectors.py FOLDER    # FOLDER: byzfl 0.0.11, unpacked

Its package imports torchvision, which the rules do not need: they are imported past it. Its
geometric median is given iterations enough; of its default three it is one digit right. Its Krum
is left out: it adds up the distances to n - f - 1 others, Blanchard et al. to n - f - 2.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np

_TARGET = Path(__file__).resolve().parents[2] / "tests" / "unit" / "byzfl_vectors.json"
_CLIENTS, _ATTACKERS, _SIZE = 11, 2, 5


def main() -> int:
    """Compute and write."""
    package = types.ModuleType("byzfl")
    package.__path__ = [str(Path(sys.argv[1]) / "byzfl")]
    sys.modules["byzfl"] = package
    from byzfl.aggregators import aggregators as rules
    from byzfl.aggregators import preaggregators as before
    from byzfl.attacks import attacks

    vectors = np.random.default_rng(0).normal(size=(_CLIENTS, _SIZE))
    vectors[-_ATTACKERS:] = 30 + 10 * vectors[-_ATTACKERS:]
    honest = vectors[:-_ATTACKERS]
    made = {  # of copies: some of them change what they are given
        "median": rules.Median()(vectors.copy()),
        "trimmed_mean": rules.TrMean(f=_ATTACKERS)(vectors.copy()),
        "geometric_median": rules.GeometricMedian(nu=1e-12, T=5000)(vectors.copy()),
        "centered_clipping": rules.CenteredClipping(L=3, tau=1.5)(vectors.copy()),
        "norm_bounding": rules.Average()(before.Clipping(c=1.5)(vectors.copy())),
        "alie": attacks.ALittleIsEnough(tau=1.5)(honest.copy()),
        "ipm": attacks.InnerProductManipulation(tau=2.0)(honest.copy()),
    }
    said = {name: np.asarray(value).tolist() for name, value in made.items()}
    lines = {"vectors": vectors.tolist(), "attackers": _ATTACKERS, **said}
    _TARGET.write_text(json.dumps(lines, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
