"""Metrics of several replicas as one text: each sample with the replica that it is of."""

from __future__ import annotations

from collections.abc import Mapping


def merge(texts: Mapping[str, str]) -> str:
    """One text in Prometheus' format of several, whose samples get the label `replica`.

    Args:
        texts: of each replica, by its name (letters, digits, '-', '_').
    """
    families: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, [])
                if not family:
                    family.append(line)
            elif line.startswith("#"):
                if len(family) == 1:
                    family.append(line)
            elif line:
                name, _, value = line.rpartition(" ")
                mark = f'replica="{replica}"'
                labelled = f"{name[:-1]},{mark}}}" if name.endswith("}") else f"{name}{{{mark}}}"
                family.append(f"{labelled} {value}")
    return "".join(f"{line}\n" for family in families.values() for line in family)
