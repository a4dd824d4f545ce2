"""What the numbers of a comparison cannot say, in sentences."""

from collections import Counter

import pandas as pd

from subspacelab.rotation.chain import Chain
from subspacelab.rotation.metrics import MIN_GAP
from subspacelab.rotation.null_model import false_alarm_rate


def note_limits(layers: pd.DataFrame, chain: Chain, null_draws: int = 0) -> list[str]:
    """What these numbers cannot say, in sentences: of types, gaps, truncation, whole sides, square weights, draws."""
    labels = chain.labels
    notes = [
        f"{count} weights are stored as {', '.join(f'{t} in {c}' for t, c in zip(types, labels, strict=True))}: "
        "their updates hold the rounding from one type to the other"
        for types, count in Counter(map(chain.storage, chain.names)).items()
        if len(set(types)) > 1
    ]
    had_back = chain.num_streamed < len(chain.checkpoints)
    wide = sum(
        had_back and chain.is_full(name) and not {"F16", "BF16"}.issuperset(chain.storage(name)) for name in chain.names
    )
    if wide:
        notes.append(
            f"in {wide} weights stored in 32 bits or more, an entry that moved by less than their float32 factors can "
            "tell (some 5e-7 of a typical entry) counts as unchanged and is no part of the update"
        )
    links = layers
    layers = layers.drop_duplicates("weight")
    narrow = int((layers["gap_k"] < MIN_GAP).sum())
    if narrow:
        notes.append(
            f"in {narrow} weights the gap sigma_k / sigma_(k+1) is below {MIN_GAP}: the leading k directions are "
            "hardly determined, and angle_max_* is empty"
        )
    truncated = sum(not chain.is_full(name) for name in chain.names)
    if truncated:
        notes.append(
            f"{truncated} weights keep only their leading singular triples: update_*, unchanged_*, principal_energy_*, "
            "cosine_01_12, floor_* and the null models need all of them and are empty"
        )
    for side, size in (("U", "m"), ("Vh", "n")):
        whole = int((layers["k"] == layers[size]).sum())
        if whole:
            notes.append(
                f"in {whole} weights the {side} side has only k directions: its principal angles are 0 for any matrices"
            )
    identities = int((layers["identity_U"] & layers["identity_Vh"]).sum()) if "identity_U" in layers else 0
    if identities:
        notes.append(
            f"{identities} weights are square, an identity on both sides: rotation_mse says nothing of them "
            "(decompose with a rank below their size to test them)"
        )
    unchanged = links["unchanged_02" if "unchanged_02" in links else "unchanged"]
    sparse = links.loc[unchanged > 0.5, "weight"].nunique()
    if null_draws and sparse:
        notes.append(
            f"in {sparse} weights more than half of the entries are unchanged: random updates spread over all entries, "
            "and an update of few rows differs from theirs by that alone"
        )
    if null_draws > 1:
        rates = " and ".join(f"|z| > {z} in {false_alarm_rate(z, null_draws):.2g}" for z in (3, 5))
        notes.append(
            f"z of a weight rests on {null_draws} random updates: by chance alone {rates} of the columns, more often "
            "of angles and composition errors, which are skewed (energy and cosine need no draws: 0.003 and below 1e-4 "
            "from k = 16 on)"
        )
    return notes
