"""Write digits.npz beside this file: the same bytes on every machine (fixed order, fixed times, no compression).

python examples/digits/make_data.py [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time a zip file can hold


def digits_npz() -> bytes:
    bunch = load_digits()
    arrays = {"labels": bunch.target.astype(np.uint8), "pictures": bunch.data.astype(np.uint8)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EARLIEST), entry.getvalue())
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("digits.npz"))
    path = parser.parse_args().out
    data = digits_npz()
    path.write_bytes(data)
    print(f"{path} {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")  # noqa: T201  # a command's answer


if __name__ == "__main__":
    main()
