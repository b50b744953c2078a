"""The orchestrator: image and prompt through vision encoder, Q-Former with voting, and language model."""

from __future__ import annotations

import os

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.pipeline.answering import Answering
from catp.runtime.pipeline.scoring import Scoring
from catp.runtime.providers import open_provider


class Pipeline(Answering, Scoring):
    """A bundle's engines, loaded and chained; its stages are there for callers that share work between settings."""

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        provider: str = "cpu",
        verify: bool = True,
        threads: int | None = None,
        engines: str | None = None,
        verbose: bool = False,
        rehash: bool = False,
    ) -> Pipeline:
        """Open a bundle and load its graphs.

        Args:
            bundle: a folder written by catp-export.
            provider: what executes the graphs, one of `catp.runtime.providers.PROVIDERS`.
            verify: compare every file with the manifest's sha256 first; see `open_bundle`.
            threads: CPU threads within an operator; None leaves it to the provider.
            engines: name of an engine set (`catp-inspect` lists them); None: the newest that fits.
            verbose: let ONNX Runtime write its log to standard error.
            rehash: read every file for that, also those that nobody touched since they were hashed last.

        Raises:
            UsageError: no such bundle or provider.
            BundleError: the bundle is incomplete or was altered.
        """
        return cls(open_bundle(bundle, verify, rehash), open_provider(provider, threads, engines, verbose))
