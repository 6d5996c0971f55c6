"""Cold start: the images to label before there is a model.

With few labels, typical images teach most (Hacohen et al. 2022, arXiv 2202.02794). The pool's embeddings are clustered
into as many clusters as images will be labelled, and the image nearest to each centre is chosen, from the largest
cluster first.
"""

import warnings

import numpy as np

from contract.scores.holdout import is_held_out
from trainer.ordering.arrays import Float32s, Ints
from trainer.ordering.order import Arrangement, in_draw_order, interleave
from trainer.ordering.reasons import BY_CHANCE, COVERS
from trainer.ordering.strategies import check_finite, check_tasks

_MIN_FITTED, _FITTED_PER_CLUSTER = 5000, 10
"""Size of the random sample of embeddings that k-means is fitted to: a minimum, and per cluster."""
_ITERATIONS = 20


def arrange(
    task_ids: Ints, embeddings: Float32s, *, project: int, holdout_share: float, before_holdout: int, batch_size: int
) -> Arrangement:
    """Order tasks (N,) by their embeddings (N, E), with evenly spaced scores; independent of the order of the input.

    Args:
        task_ids: int64 (N,).
        embeddings: float32 (N, E).
        project: the project's number, which seeds the order.
        holdout_share: the random holdout's share of the places.
        before_holdout: number of first places without holdout images.
        batch_size: number of tasks chosen to cover the pool.

    Raises:
        ConfigError: if the share is not in its range.
        ValueError: if a task occurs twice, or an embedding is not finite.
    """
    check_tasks(task_ids)
    check_finite("the embedding", embeddings, task_ids)
    sampled = is_held_out(project, task_ids, holdout_share)
    by_task = np.argsort(task_ids)
    others = by_task[~sampled[by_task]]
    queue = others[cover(embeddings[others], batch_size=batch_size, seed=project)]
    own = np.arange(len(task_ids))
    reasons = np.where(np.isin(own, queue[:batch_size]), COVERS, BY_CHANCE).tolist()
    order = interleave(in_draw_order(project, task_ids, sampled), queue, holdout_share, start=before_holdout)
    return Arrangement.from_scores(order, (own + 0.5) / max(len(own), 1), reasons, held_out=sampled, representative=own)


def cover(embeddings: Float32s, *, batch_size: int, seed: int) -> Ints:
    """Return an order of embeddings, float32 (N, E), that begins with the most typical ones: indices, int64 (N,).

    The first `batch_size` are nearest to the centres of as many k-means clusters, largest cluster first; the others
    follow in random order. There are fewer clusters if there are fewer distinct embeddings.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    clusters = min(batch_size, len(embeddings))
    chosen = _choose_central(embeddings, clusters, rng) if clusters else np.empty(0, np.int64)
    others = np.setdiff1d(np.arange(len(embeddings)), chosen)
    return np.concatenate([chosen, rng.permutation(others)])


def _choose_central(embeddings: Float32s, clusters: int, rng: np.random.Generator) -> Ints:
    """Return the image nearest to each cluster's centre: int64 (K,), K at most `clusters`, largest clusters first."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    fitted = max(_MIN_FITTED, _FITTED_PER_CLUSTER * clusters)
    kmeans = KMeans(clusters, n_init=1, max_iter=_ITERATIONS, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct embeddings than clusters
        members = kmeans.fit(embeddings[rng.permutation(len(embeddings))[:fitted]]).predict(embeddings)  # (N,)
    distances = np.linalg.norm(embeddings - kmeans.cluster_centers_[members], axis=1)
    by_cluster = np.lexsort((distances, members))
    _, starts, sizes = np.unique(members[by_cluster], return_index=True, return_counts=True)
    central: Ints = by_cluster[starts[np.argsort(-sizes, kind="stable")]]
    return central
