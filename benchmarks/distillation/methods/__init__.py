"""Distillation methods, each kind in a file with its ``METHODS``.

A further method is a further file, named here.
"""

from benchmarks.distillation.methods import (
    clusters,
    codebook,
    controls,
    crd,
    dist,
    dkd,
    fitnet,
    lelp,
    rkd,
    subclass_distillation,
    variants,
    vid,
)
from benchmarks.distillation.methods.base import Method, Peer

METHODS = {**lelp.METHODS, **fitnet.METHODS, **controls.METHODS}
EARLIER = {
    lelp.of_earlier_layer(name): lelp.on_earlier_layer(METHODS[name])
    for name in ("LELP as published", "LELP, library defaults", "FitNet")
}
PEERS = {
    **fitnet.CONSTANT_WEIGHT,
    **vid.METHODS,
    **rkd.METHODS,
    **crd.METHODS,
    **dkd.METHODS,
    **dist.METHODS,
    **subclass_distillation.METHODS,
    **codebook.METHODS,
    **clusters.METHODS,
    **lelp.RANDOM,
}
# Everything that can be trained, by name.
TRAINABLE: dict[str, Method] = {**METHODS, **EARLIER, **PEERS, **variants.VARIANTS}

TERMS = {
    "VID": vid.TERM,
    "RKD": rkd.TERM,
    "CRD": crd.TERM,
    "DKD": dkd.TERM,
    "DIST": dist.TERM,
    "codebook": codebook.TERM,
    subclass_distillation.NAME: subclass_distillation.TERM,
}


def own_weight(method: Method) -> float | None:
    """Return where the search for a method's own weight begins, None without one."""
    if method.is_fitnet:
        return fitnet.TERM.own_weight
    return TERMS[method.term].own_weight if isinstance(method, Peer) else None
