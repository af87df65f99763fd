"""Where benches write what they measured: bench/results.json, and stdout."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"


def report(found: dict[str, float]) -> None:
    """Prints results and adds them to the file, so that a run that is cut short keeps what it has."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known |= {key: round(value, 3) for key, value in found.items()}
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    for key, value in found.items():
        print(f"{key:36} {value:10.3f}", flush=True)
