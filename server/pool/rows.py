"""What the output holds of each image: its scores, or why it has none. One row for each row of the input, in its order.

Knows no files and no Ray.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from contract.errors import ImageError
from contract.scores.acquisition import label_studio_score, normalised_bald
from contract.versions.manifest import Manifest
from server.inference.batching import ImageScores
from server.inference.scoring import Outcome
from server.settings import Score


def make_schema(manifest: Manifest, id_type: pa.DataType, notes: Mapping[str, str]) -> pa.Schema:
    """Return the output's columns; `notes` and the labels, in the order of the probabilities, go into the footer.

    `score` is what Label Studio would get, `bald` and `entropy` are in nats, `label` is the likeliest, and
    `probabilities` are the means over the passes. Where an image failed these are null, and `error` and `detail` are
    set.
    """
    fields = {
        "id": id_type,
        "score": pa.float32(),
        "bald": pa.float32(),
        "entropy": pa.float32(),
        "label": pa.string(),
        "probabilities": pa.list_(pa.float32()),
        "version": pa.string(),
        "error": pa.string(),
        "detail": pa.string(),
    }
    return pa.schema(fields.items(), metadata={"labels": json.dumps(manifest.labels), **notes})


def build_table(
    ids: pa.Array, outcomes: Sequence[Outcome], *, schema: pa.Schema, manifest: Manifest, direction: Score
) -> pa.Table:
    """Return one row per outcome, in order, in the columns of `make_schema`."""
    scored = [outcome if isinstance(outcome, ImageScores) else None for outcome in outcomes]
    failed = [outcome if isinstance(outcome, ImageError) else None for outcome in outcomes]
    share = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    bald = np.array([each.bald if each else np.nan for each in scored])
    scores = share(bald, len(manifest.labels), multiple=manifest.multiple).astype(np.float32)
    columns = {
        "id": ids,
        "score": pa.array(scores, mask=np.array([each is None for each in scored], bool)),
        "bald": [each and each.bald for each in scored],
        "entropy": [each and each.entropy for each in scored],
        "label": [each and manifest.labels[int(each.mean_probabilities.argmax())] for each in scored],
        "probabilities": [each and each.mean_probabilities for each in scored],
        "version": [manifest.version] * len(outcomes),
        "error": [each and each.code for each in failed],
        "detail": [each and str(each) for each in failed],
    }
    return pa.table(columns, schema=schema)
