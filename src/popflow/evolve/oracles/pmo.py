"""The 23 objectives of the benchmark of practical molecular optimisation (PMO), and penalised logP, on RDKit alone.

Source: Gao, Fu, Sun and Coley, "Sample efficiency matters" (NeurIPS 2022); the goals of GuacaMol; JNK3, GSK3b and DRD2 as in `activity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from rdkit.Chem import Crippen, Descriptors, GraphDescriptors, rdMolDescriptors

from popflow.core.errors import unknown
from popflow.evolve.molecules import Chem, parse
from popflow.evolve.oracles.activity import drd2, gsk3b, jnk3
from popflow.evolve.oracles.terms import (
    Term,
    arithmetic,
    at_least,
    at_most,
    clipped,
    count_of,
    gaussian,
    geometric,
    has,
    isomer,
    lacks,
    of,
    pharmacophore_similarity,
    similarity,
    synthetic_accessibility,
)

logp: Term = Crippen.MolLogP  # pyright: ignore[reportAttributeAccessIssue]
tpsa: Term = rdMolDescriptors.CalcTPSA
qed: Term = Descriptors.qed
bertz: Term = GraphDescriptors.BertzCT
rings: Term = rdMolDescriptors.CalcNumRings
aromatic_rings: Term = rdMolDescriptors.CalcNumAromaticRings


def penalised_logp(molecule: Chem.Mol) -> float:
    """Return logP less SA and rings of more than six atoms, each standardised over ZINC."""
    largest = max(map(len, molecule.GetRingInfo().AtomRings()), default=0)
    return (
        (logp(molecule) - 2.4570953396190123) / 1.434324401111988
        + (3.0525811293166134 - synthetic_accessibility(molecule)) / 0.8335207024513095
        + (0.0485696876403053 - max(0, largest - 6)) / 0.2860212110245455
    )


CAMPHOR, MENTHOL = "CC1(C)C2CCC1(C)C(=O)C2", "CC(C)C1CCC(C)CC1O"
TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"
OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
RANOLAZINE = "COc1ccccc1OCC(O)CN2CCN(CC(=O)Nc3c(C)cccc3C)CC2"
PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"
SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
SITAGLIPTIN_ISOMER = "NC(CC(=O)N1CCn2c(nnc2C(F)(F)F)C1)Cc1cc(F)c(F)cc1F"
"""The molecule whose properties the task of valsartan's pattern asks for."""
HOP_TARGET = "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C"
HOP_SCAFFOLD = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"
HOP_DECORATION = "[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]-[#7]-c1ccc2ncsc2c1"


def _osimertinib() -> Term:
    fits = of(similarity(OSIMERTINIB, "FCFP4"), clipped(0.8)), of(similarity(OSIMERTINIB, "ECFP6"), at_most(0.85, 0.1))
    return geometric(of(tpsa, at_least(100, 10)), of(logp, at_most(1, 1)), *fits)


def _fexofenadine() -> Term:
    return geometric(of(tpsa, at_least(90, 10)), of(logp, at_most(4, 1)), of(similarity(FEXOFENADINE, "AP"), clipped(0.8)))


def _ranolazine() -> Term:
    near = of(similarity(RANOLAZINE, "AP"), clipped(0.7))
    return geometric(of(tpsa, at_least(95, 20)), of(logp, at_least(7, 1)), near, of(count_of("F"), gaussian(1, 1)))


def _sitagliptin() -> Term:
    target = parse(SITAGLIPTIN)
    unlike = of(similarity(SITAGLIPTIN, "ECFP4"), gaussian(0, 0.1))
    alike = of(logp, gaussian(logp(target), 0.2)), of(tpsa, gaussian(tpsa(target), 5))
    return geometric(unlike, *alike, isomer("C16H15F6N5O"))


def _valsartan() -> Term:
    target = parse(SITAGLIPTIN_ISOMER)
    alike = of(tpsa, gaussian(tpsa(target), 5)), of(logp, gaussian(logp(target), 0.2)), of(bertz, gaussian(bertz(target), 30))
    return geometric(has("CN(C=O)Cc1ccc(c2ccccc2)cc1"), *alike)


def _deco_hop() -> Term:
    near = of(pharmacophore_similarity(HOP_TARGET), clipped(0.85))
    return arithmetic(near, lacks("CS([#6])(=O)=O"), lacks("[#7]-c1ccc2ncsc2c1"), has(HOP_SCAFFOLD))


def _scaffold_hop() -> Term:
    return arithmetic(of(pharmacophore_similarity(HOP_TARGET), clipped(0.75)), has(HOP_DECORATION), lacks(HOP_SCAFFOLD))


def _similar(target: str, kind: str) -> Term:
    return of(similarity(target, kind), clipped(0.75))


TASKS: dict[str, Callable[[], Term]] = {
    "albuterol_similarity": partial(_similar, "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1", "FCFP4"),
    "amlodipine_mpo": lambda: geometric(similarity(AMLODIPINE, "ECFP4"), of(rings, gaussian(3, 0.5))),
    "celecoxib_rediscovery": partial(similarity, "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F", "ECFP4"),
    "deco_hop": _deco_hop,
    "drd2": lambda: drd2,
    "fexofenadine_mpo": _fexofenadine,
    "gsk3b": lambda: gsk3b,
    "isomers_c7h8n2o2": partial(isomer, "C7H8N2O2"),
    "isomers_c9h10n2o2pf2cl": partial(isomer, "C9H10N2O2PF2Cl"),
    "jnk3": lambda: jnk3,
    "median1": lambda: geometric(similarity(CAMPHOR, "ECFP4"), similarity(MENTHOL, "ECFP4")),
    "median2": lambda: geometric(similarity(TADALAFIL, "ECFP6"), similarity(SILDENAFIL, "ECFP6")),
    "mestranol_similarity": partial(_similar, "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1", "AP"),
    "osimertinib_mpo": _osimertinib,
    "perindopril_mpo": lambda: geometric(similarity(PERINDOPRIL, "ECFP4"), of(aromatic_rings, gaussian(2, 0.5))),
    "qed": lambda: qed,
    "ranolazine_mpo": _ranolazine,
    "scaffold_hop": _scaffold_hop,
    "sitagliptin_mpo": _sitagliptin,
    "thiothixene_rediscovery": partial(similarity, "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1", "ECFP4"),
    "troglitazone_rediscovery": partial(similarity, "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O", "ECFP4"),
    "valsartan_smarts": _valsartan,
    "zaleplon_mpo": lambda: geometric(similarity(ZALEPLON, "ECFP4"), isomer("C19H17N3O2")),
}
"""The 23 tasks of PMO, in alphabetical order."""

OTHERS: dict[str, Callable[[], Term]] = {
    "aripiprazole_similarity": partial(_similar, "Clc4cccc(N3CCN(CCCCOc2ccc1c(NC(=O)CC1)c2)CC3)c4Cl", "FCFP4"),
    "logp": lambda: logp,
    "penalised_logp": lambda: penalised_logp,
    "sa": lambda: synthetic_accessibility,
    "tpsa": lambda: tpsa,
}
"""Objectives and properties beside the benchmark."""


@lru_cache(maxsize=64)
def _term(name: str) -> Term:
    return {**TASKS, **OTHERS}[name]()


@dataclass(frozen=True, slots=True)
class Objective:
    """A named objective, ``objective(smiles) -> value``: to be maximised in [0, 1] for the tasks of PMO.

    What it needs is made at the first call in each process, so it travels to workers as its name.

    Args:
        name: One of ``TASKS`` or ``OTHERS``.

    Raises:
        ValueError: for an unknown name; by a call, for text that is no molecule.

    Example:
        >>> Objective("perindopril_mpo")("CCO") < Objective("perindopril_mpo")("CCCC(NC(C)C(=O)N1C(C(=O)O)CC2CCCCC12)C(=O)OCC")
        True
        >>> Objective("celecoxib_rediscovery")("Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F")
        1.0
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS and self.name not in OTHERS:
            raise ValueError(unknown("objective", self.name, [*TASKS, *OTHERS]))

    def __call__(self, smiles: str) -> float:
        """Return the value of one molecule."""
        return float(_term(self.name)(parse(smiles)))
