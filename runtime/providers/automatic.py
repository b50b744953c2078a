"""Each graph by the provider that its bundle names for this machine."""

from __future__ import annotations

import logging

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.placements import ON_CPU, Place, find_placement
from catp.runtime.errors import UsageError
from catp.runtime.providers.base import Engine, HostMoment, Provider
from catp.runtime.providers.onnx_runtime import OrtProvider
from catp.runtime.system.machine import available_cpus, cpu_model

_log = logging.getLogger(__name__)


def open_place(place: Place, threads: int | None = None, verbose: bool = False) -> Provider:
    """The provider that a place names.

    Raises:
        UsageError: it is not installed, or this machine has no such device.
    """
    if place.provider == "cpu":
        return OrtProvider("cpu", threads, verbose)
    from catp.runtime.providers.openvino.provider import OpenVinoProvider

    return OpenVinoProvider(place.provider, threads, verbose, place.device, place.precision)


class AutomaticProvider:
    """ONNX Runtime on the CPU, but for graphs for which catp-calibrate measured on this machine that another is faster.

    All of them hand tensors on in host memory.

    Raises:
        UsageError: ONNX Runtime is not installed, or there are more threads than these cores could run.
    """

    def __init__(self, name: str, threads: int | None = None, verbose: bool = False) -> None:
        self.name = name
        self._threads = threads
        self._verbose = verbose
        self._machine = cpu_model(), available_cpus()
        self._opened: dict[Place, Provider] = {ON_CPU: open_place(ON_CPU, threads, verbose)}

    def synchronize(self) -> None:
        """Nothing to wait for: a run returns when it is done."""

    def moment(self) -> HostMoment:
        return HostMoment()

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        """Load one graph of a bundle, by the CPU's provider where the bundle says nothing about this machine, or names
        what is not there any more.

        Raises:
            UsageError: ONNX Runtime can't compute in the bundle's precision.
            BundleError: the graph can't be loaded, or is not what the manifest says.
        """
        placement = find_placement(bundle.manifest.placements, *self._machine)
        place = ON_CPU if placement is None else placement.graphs.get(graph, ON_CPU)
        return self._provider(place).engine(bundle, graph)

    def _provider(self, place: Place) -> Provider:
        if place not in self._opened:
            try:
                self._opened[place] = open_place(place, self._threads, self._verbose)
            except UsageError as error:
                _log.warning(
                    "provider %s: the bundle names %s for this machine, ONNX Runtime takes its place: %s",
                    self.name,
                    place.label,
                    error,
                )
                self._opened[place] = self._opened[ON_CPU]
        return self._opened[place]
