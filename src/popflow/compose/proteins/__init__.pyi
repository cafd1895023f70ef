from .frames import (
    atoms as atoms,
    dihedral as dihedral,
    extended as extended,
    fragment_mixture as fragment_mixture,
    fragments as fragments,
    frame_draws as frame_draws,
    frame_mixture as frame_mixture,
    frame_space as frame_space,
    helical as helical,
    ideal_backbone as ideal_backbone,
    relative as relative,
    residue_frames as residue_frames,
    torsions as torsions,
)
from .pdb import backbones as backbones, pdb_texts as pdb_texts
