"""Recall: the share of pictures, or texts, of which something that belongs to them is among the best k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from catp.calibration.accuracy.statistics import bootstrap_interval, wilson_interval
from catp.calibration.data.captions import Captions
from catp.runtime.bundle.strict import Strict
from catp.runtime.retrieval.ranking import Found

AT = (1, 5, 10)
"""How many of the best are looked at, as is usual."""


class Recall(Strict):
    """One number of a search in one direction."""

    at: int = Field(description="how many of the best are looked at")
    share: float = Field(description="0 to 1")
    interval_95: tuple[float, float]


class Setting(Strict):
    """The settings of a search."""

    ratio: float | None = Field(default=None, description="of query tokens that were removed; none: the bundle's")
    encoder_flops: float | None = Field(default=None, description="share of the encoder's work; none: the bundle's")
    encoder_temperature: float | None = Field(
        default=None, description="of an encoder that counts its tokens; none: the bundle's"
    )


class SettingRecall(Strict):
    """Recall of a search in both directions."""

    setting: Setting
    encoder_gflops: float | None = Field(
        default=None, description="of the vision encoder for one picture, or their mean; none: it prunes nothing"
    )
    answer_gflops: float | None = Field(
        default=None, description="of one picture and one text of mean length, with all that scores them"
    )
    texts: tuple[Recall, ...] = Field(description="of each image, whether one of its texts is found")
    images: tuple[Recall, ...] = Field(description="of each text, whether its image is found")

    @property
    def mean(self) -> float:
        """Mean of all numbers: what BLIP's official evaluation calls r_mean."""
        return float(np.mean([found.share for found in (*self.texts, *self.images)]))


class RecallReport(Strict):
    """Findings of catp-eval on pictures with captions."""

    bundle: str
    family: str
    data: str
    images: int
    texts: int
    rerank: int = Field(description="how many of the best the matching head read; 0: none")
    text_tokens: int | None = Field(description="of longer texts the first so many were read; none: all")
    seed: int
    text_encoder: str | None = Field(default=None, description="how its layers prune texts; none: they do not")
    settings: tuple[SettingRecall, ...]


def hits(found: Found, captions: Captions) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the best that belongs, from 0: int64 [I] of pictures, [T] of texts; n where none of n best does."""
    image_of = np.array(captions.image_of)
    right = image_of[found.texts.best] == np.arange(len(captions.images))[:, None]
    of_images = np.where(right.any(1), right.argmax(1), right.shape[1])
    right = found.pictures.best == image_of[:, None]
    of_texts = np.where(right.any(1), right.argmax(1), right.shape[1])
    return of_images, of_texts


def recall_of(
    found: Found,
    captions: Captions,
    setting: Setting,
    seed: int,
    encoder_gflops: float | None = None,
    answer_gflops: float | None = None,
    at: Sequence[int] = AT,
) -> SettingRecall:
    """Recall both ways. Texts of one picture are found together, so intervals draw pictures, not texts."""
    of_images, of_texts = hits(found, captions)
    texts, images = [], []
    for count in at:
        good = of_images < count
        texts.append(
            Recall(at=count, share=float(good.mean()), interval_95=wilson_interval(float(good.sum()), len(good)))
        )
        good = of_texts < count
        interval = bootstrap_interval(good, seed, clusters=captions.image_of)
        images.append(Recall(at=count, share=float(good.mean()), interval_95=interval))
    work = {"encoder_gflops": encoder_gflops, "answer_gflops": answer_gflops}
    return SettingRecall(setting=setting, texts=tuple(texts), images=tuple(images), **work)
