"""Slow and obvious versions of what the product computes."""

import numpy as np


def count_points(maps: list[np.ndarray]) -> np.ndarray:
    """Points by loops: every image token ranks the queries, highest N points, ties to the lower index."""
    batch, _, queries, _ = maps[0].shape
    scores = np.zeros((batch, queries), np.int64)
    for layer in maps:
        for row, head, token in np.ndindex(batch, layer.shape[1], layer.shape[3]):
            column = layer[row, head, :, token]
            for place, query in enumerate(sorted(range(queries), key=lambda q: (-column[q], q))):
                scores[row, query] += queries - place
    return scores


def weigh_points(maps: list[np.ndarray], weights: list[float], image_weights: np.ndarray | None) -> np.ndarray:
    """As count_points, with a weight for every layer and for every image token [B, I]."""
    batch, _, queries, _ = maps[0].shape
    scores = np.zeros((batch, queries))
    for layer, weight in zip(maps, weights):
        for row, head, token in np.ndindex(batch, layer.shape[1], layer.shape[3]):
            column = layer[row, head, :, token]
            voice = weight * (1.0 if image_weights is None else float(image_weights[row, token]))
            for place, query in enumerate(sorted(range(queries), key=lambda q: (-column[q], q))):
                scores[row, query] += voice * (queries - place)
    return scores


def probability_points(maps: list[np.ndarray], image_weights: np.ndarray) -> np.ndarray:
    """[B, N]: probabilities instead of points."""
    return np.asarray(sum(np.einsum("bhni,bi->bn", layer.astype(np.float64), image_weights) for layer in maps))


def received(self_attention: list[np.ndarray]) -> np.ndarray:
    """[B, N]: what every query gets from all, over heads and layers [B, H, N, N]."""
    batch, _, queries, _ = self_attention[-1].shape
    scores = np.zeros((batch, queries))
    for layer in self_attention:
        for row, head, source, target in np.ndindex(batch, layer.shape[1], queries, queries):
            scores[row, target] += layer[row % len(layer), head, source, target]
    return scores


def cover_greedily(maps: list[np.ndarray], image_embeds: np.ndarray) -> np.ndarray:
    """[B, N]: what each query adds to the worth of what is seen, in the order of the greedy choice; by loops."""
    batch, heads, queries, tokens = maps[0].shape
    scores = np.zeros((batch, queries))
    for row in range(batch):
        embeds = image_embeds[row].astype(np.float64)
        worth = [float(np.linalg.norm(embed - embeds.mean(0))) for embed in embeds]
        places = list(np.ndindex(len(maps), heads, tokens))
        covered = dict.fromkeys(places, 0.0)
        free = list(range(queries))
        while free:
            gains = {
                q: sum(max(0.0, worth[i] * float(maps[la][row, h, q, i]) - covered[la, h, i]) for la, h, i in places)
                for q in free
            }
            best = max(free, key=lambda q: (gains[q], -q))
            scores[row, best] = gains[best]
            free.remove(best)
            for la, h, i in places:
                covered[la, h, i] = max(covered[la, h, i], worth[i] * float(maps[la][row, h, best, i]))
    return scores


def pivoted_lengths(query_embeds: np.ndarray) -> np.ndarray:
    """[B, N]: squared residual of each centred embedding [D] when it is the worst explained; by least squares."""
    scores = np.zeros(query_embeds.shape[:2])
    for row, embeds in enumerate(query_embeds.astype(np.float64)):
        centred = embeds - embeds.mean(0)
        centred /= np.linalg.norm(centred)
        kept: list[int] = []
        while len(kept) < len(centred):
            basis = centred[kept].T
            solution = np.linalg.lstsq(basis, centred.T, rcond=None)[0] if kept else np.zeros((0, len(centred)))
            left = ((centred.T - basis @ solution) ** 2).sum(0)
            free = [query for query in range(len(centred)) if query not in kept]
            best = max(free, key=lambda q: (round(float(left[q]), 12), -q))
            scores[row, best] = left[best]
            kept.append(best)
    return scores
