"""How much of a large tensor is held at a time while it is encoded and decoded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from copies_in_process import copies_in_process
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import forging

EXTENT = 2048
COPY_BYTES = 4 * EXTENT * EXTENT
# Panels, tiles, tables of a basis: none of it grows with the tensor.
BESIDE_BYTES = 16 << 20
# Copies of a tensor of float32. Steps that are too fine for whole numbers are worked on in float64: two copies in one.
# A tensor that is stored alone is held, as its words, and coded, once in parts and once in one piece.
MOST = {
    "encode compact": 3,
    "decode compact": 2,
    "encode compact fine": 5,
    "decode compact fine": 2,
    "encode exact": 3,
    "decode exact": 3,
    "encode exact alone": 4,
    "decode exact alone": 3,
}


def _orthonormal(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.int16]:
    columns = np.linalg.qr(rng.normal(size=(height, height)))[0][:, :width]
    return np.round(31 * columns).astype(np.int16).reshape(-1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("side", [(64, 64), None], ids=["factors", "no factors"])
def test_few_copies_of_a_tensor_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: tuple[int, int] | None
) -> None:
    """The tensor as it is read, what is given back, and integers are counted; the basis, which is open before, is not."""
    monkeypatch.setattr(forging, "_factor", _orthonormal)
    for name, extent in (("small", 256), ("large", EXTENT)):
        rows = (forging.Row("w", (extent, extent), left=side, right=side),)
        basis = forging.forge_basis(rows, seed=0)
        for path, data in basis.objects.items():
            place = tmp_path / name / "basis" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        (tmp_path / name / "digest").write_text(basis.digest)
        tensors = forging.forge_checkpoint(rows, basis, seed=1, noise=0.005)
        save_file(tensors, tmp_path / name / "model.safetensors")
    peaks = copies_in_process(tmp_path)
    assert peaks.keys() == MOST.keys()
    for what, peak in peaks.items():
        assert peak <= MOST[what] * COPY_BYTES + BESIDE_BYTES, f"{what}: {peak / COPY_BYTES:.2f} copies"
        assert peak >= COPY_BYTES, f"{what}: {peak} bytes are less than the tensor itself"
