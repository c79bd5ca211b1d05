"""What a run will hold on the device, phase by phase, before anything is read or computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import resident_set, ring_bytes
from .residency import SLOTS, granted

MARGIN = 0.1  # of the free bytes: workspaces of kernels, fragmentation
GIB = 1 << 30


@dataclass(frozen=True)
class Weights:
    """Device bytes of one network: outside its blocks, and of each block that may stream.

    `loads` are the bytes of the blocks where they do, if adapters travel with them.
    """

    outside: int
    blocks: tuple[int, ...] = ()
    policy: str = "auto"
    loads: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    @property
    def least(self) -> int:
        """Device bytes when every block streams."""
        return self.outside + ring_bytes(self.travelling, (), SLOTS)

    @property
    def travelling(self) -> tuple[int, ...]:
        """Bytes of the blocks where they stream."""
        return self.loads or self.blocks


@dataclass(frozen=True)
class Way:
    """One way to run a phase and the bytes of activations that it takes.

    Streamed blocks pass the device `visits` times for the work of one evaluation.
    """

    name: str
    activations: int
    visits: int = 1


@dataclass(frozen=True)
class Need:
    """A phase: the networks that it holds together and its ways, the preferred one first.

    `remedy` is what a user can do where no way fits. A phase that `may_leave` is short enough to
    run on the CPU then.
    """

    name: str
    networks: tuple[Weights, ...]
    ways: tuple[Way, ...]
    remedy: str = "lower width, height or frames"
    may_leave: bool = False

    @property
    def least(self) -> int:
        """Device bytes of weights when every block streams."""
        return sum(network.least for network in self.networks)

    def way(self, usable: float) -> Way:
        """The way that is planned for `usable` bytes: see `plan`."""
        return self.ways[_chosen(self, usable)[0]]

    def ways_within(self, room: float, first: Way) -> tuple[Way, ...]:
        """Ways from `first` on, each smaller than the last; they begin with one that fits `room`.

        Where none fits, only the smallest is left.
        """
        smaller: list[Way] = []
        for way in self.ways[self.ways.index(first) :]:
            if not smaller or way.activations < smaller[-1].activations:
                smaller.append(way)
        fitting = [way for way in smaller if way.activations <= room]
        return tuple(fitting or smaller[-1:])


@dataclass(frozen=True)
class Phase:
    """A planned phase; `weights` are the device bytes of networks with their rings.

    `copied` are the bytes that stream through the device in one evaluation.
    """

    name: str
    way: str
    weights: int
    activations: int
    resident: int
    streamed: int
    copied: int
    fits: bool

    @property
    def peak(self) -> int:
        return self.weights + self.activations


@dataclass(frozen=True)
class Plan:
    """Phases in order, none of which holds the weights of another."""

    phases: tuple[Phase, ...]
    free: int

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        return all(phase.fits for phase in self.phases)

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    def describe(self) -> str:
        """A table with one line per phase and a verdict."""
        head = ("phase", "weights", "activations", "peak", "blocks on device", "how")
        rows = [head, *(_row(phase) for phase in self.phases)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
                 for r in rows]  # fmt: skip
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line for the log: needed, free, what gives."""
        highest = max(self.phases, key=lambda phase: phase.peak)
        streams = [phase.name for phase in self.phases if phase.streamed]
        short = [phase.name for phase in self.phases if not phase.fits]
        text = f"peak {amount(self.peak)} in {highest.name}, free {amount(self.free)}"
        if streams:
            text += f"; streams: {', '.join(streams)}"
        if short:
            text += f"; does not fit: {', '.join(short)}: lower width, height or frames"
        return text


def plan(needs: Sequence[Need], free_bytes: float) -> Plan:
    """Choose for each phase the way that fits `free_bytes`, less a margin for kernels.

    A way fits if a phase can run with all its blocks streamed, or as the policies of its networks
    have it; what is left then goes to resident blocks. Of those that fit, the one that copies the
    fewest weights is taken, the first among equals; where none fits the smallest, and marked.
    """
    usable = free_bytes * (1 - MARGIN)
    return Plan(tuple(_chosen(need, usable)[1] for need in needs), int(free_bytes))


def _chosen(need: Need, usable: float) -> tuple[int, Phase]:
    """Index of the best way, and the phase that runs in it."""
    phases = list(enumerate(_placed(need, way, usable) for way in need.ways))
    fitting = [found for found in phases if found[1].fits]
    if fitting:
        return min(fitting, key=lambda found: found[1].copied)
    return min(phases, key=lambda found: found[1].peak)


def _placed(need: Need, way: Way, usable: float) -> Phase:
    """The phase with as many resident blocks as there is room for, network after network."""
    room = usable - way.activations - sum(weights.outside for weights in need.networks)
    used = resident = streamed = copied = 0
    for weights in need.networks:
        loads = weights.travelling
        kept = resident_set(weights.blocks, granted(weights.policy, room - used), SLOTS, loads)
        used += sum(weights.blocks[i] for i in kept) + ring_bytes(loads, kept, SLOTS)
        resident += len(kept)
        streamed += len(weights.blocks) - len(kept)
        copied += sum(size for i, size in enumerate(loads) if i not in kept) * way.visits
    total = used + sum(weights.outside for weights in need.networks)
    fits = used <= room
    return Phase(need.name, way.name, total, way.activations, resident, streamed, copied, fits)


def _row(phase: Phase) -> tuple[str, ...]:
    blocks = f"{phase.resident} of {phase.resident + phase.streamed}" if phase.streamed else "all"
    how = phase.way if phase.fits else f"{phase.way} DOES NOT FIT".strip()
    return (phase.name, *map(amount, (phase.weights, phase.activations, phase.peak)), blocks, how)


def amount(count: float) -> str:
    """Bytes for people, in GiB or MiB."""
    return f"{count / GIB:.2f} GiB" if count > GIB / 10 else f"{count / 2**20:.1f} MiB"
