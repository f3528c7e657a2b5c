"""Recompute the arrays of golden files, recorded from the authors' programs, with this project's own functions.

    python -m tools.check_parity tests/golden/ssdd_a.npz tests/golden/labels_a.npz

One line an array; exit status 1 if one is outside its tolerance or a key of a file was not checked.
"""

import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from datasets.errors import InputError, program
from evaluation.parity import icd, icdseed, psa, recurseed, ssdd
from evaluation.parity.run import CRF, EXACT, GRADIENTS, MASK, VALUES, Row, Run
from settings.flags import Parser

# By how a file's name begins; each has INPUTS, the keys that are not results, and rows(run).
KINDS = {"ssdd": ssdd, "labels": psa, "icd": icd, "icdseed": icdseed, "recurseed": recurseed}
# bfloat16 keeps 8 bits of a number; what it costs is measured here, not promised.
TOLERANCE = {
    torch.float32: {VALUES: 1e-4, CRF: 1e-3, GRADIENTS: 1e-3, MASK: 0.998, EXACT: 1.0},
    torch.bfloat16: {VALUES: 5e-2, CRF: 5e-2, GRADIENTS: 1e-1, MASK: 0.95, EXACT: 1.0},
}


def compare(row: Row, golden: np.ndarray, tolerance: float) -> tuple[str, bool]:
    """A line of figures for one array, and whether it is within tolerance."""
    if row.value.shape != golden.shape:
        return f"shape {row.value.shape}, golden {golden.shape}", False
    if row.kind in (MASK, EXACT):
        share = float((row.value == golden).mean())
        return f"equal {share:8.4%}   at least {tolerance:.1%}", share >= tolerance
    error = np.abs(row.value.astype(np.float64) - golden)
    if row.kind == GRADIENTS:
        relative = float((error / np.maximum(np.abs(golden), 1e-12)).max())
    else:
        relative = float(error.max() / max(np.abs(golden).max(), 1e-12))
    return f"max abs {error.max():.2e}  relative {relative:.2e}  tolerance {tolerance:.0e}", relative <= tolerance


def check_file(path: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Print a line an array of one golden file; True if all are within tolerance and none was left unchecked."""
    kind = path.name.split("_")[0]
    if kind not in KINDS:
        known = ", ".join(f"{name}_" for name in KINDS)
        raise InputError(f"{path}: not a golden file of a kind known here (its name must start with one of {known})")
    try:
        with np.load(path, allow_pickle=False) as archive:
            golden = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a golden .npz file ({error})") from error
    print(f"{path}  ({device.type}, {str(dtype).removeprefix('torch.')})")
    unchecked = set(golden) - KINDS[kind].INPUTS
    good = True
    try:
        for row in KINDS[kind].rows(Run(golden, device, dtype)):
            if row.key in golden:
                line, ok = compare(row, golden[row.key], TOLERANCE[dtype][row.kind])
                print(f"  {row.key:20s} {line}  {'ok' if ok else 'FAIL'}", flush=True)
                good &= ok
                unchecked.discard(row.key)
    except KeyError as error:
        raise InputError(f"{path}: the input {error} is missing, so its arrays cannot be recomputed") from None
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"{path}: its inputs are of other shapes or kinds than these functions take ({reason})"
        ) from None
    for key in sorted(unchecked):
        print(f"  {key:20s} not checked  FAIL")
    return good and not unchecked


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="autocast type")
    arguments = parser.parse_args(argv)
    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {arguments.device}: not usable here ({str(error).splitlines()[0]})") from error
    # TensorFloat-32 keeps 10 bits of the mantissa, too few for 1e-4.
    torch.backends.cudnn.allow_tf32 = False
    results = [check_file(path, device, getattr(torch, arguments.dtype)) for path in arguments.files]
    if not all(results):
        sys.exit(1)
    print(f"all arrays of {len(results)} file{'s' * (len(results) > 1)} within tolerance")


if __name__ == "__main__":
    main()
